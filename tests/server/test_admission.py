"""The bound on the backlog, the estimates behind it, and the router."""

import pytest

from server.admission import Admission, auto_steps
from server.errors import Overloaded
from server.generation import GenerationRequest, ImageRequest, ModelInfo
from server.router import Load, choose

MODEL = ModelInfo(
    name="tiny",
    digest="d",
    device="cpu",
    dtype="float32",
    numerics="exact",
    quantize="none",
    guidance_embed=False,
    default_width=256,
    default_height=256,
    default_steps=4,
    max_steps=12,
    default_sequence_length=256,
    warm_up_s=1.0,
)


def image(**changes: object) -> ImageRequest:
    fields = {"id": "a", "prompt": "", "width": 256, "height": 256, "steps": 4, "seed": 0}
    fields |= {"max_sequence_length": 64} | changes
    return GenerationRequest(**fields).images()[0]  # type: ignore[arg-type]


def admission(max_backlog_s: float = 10.0) -> Admission:
    made = Admission(max_backlog_s)
    made.start_from(MODEL)
    return made


def test_the_warm_up_picture_costs_what_it_took() -> None:
    assert admission().cost_s(image(), MODEL) == pytest.approx(1.0)


def test_cost_grows_with_tokens_steps_and_guidance() -> None:
    made = admission()
    assert made.cost_s(image(width=512, height=512), MODEL) == pytest.approx(4.0)
    assert made.cost_s(image(steps=9), MODEL) == pytest.approx(2.0)
    assert made.cost_s(image(guidance_scale=3.0), MODEL) == pytest.approx(9 / 5)


def test_the_estimate_follows_what_pictures_really_cost() -> None:
    made = admission()
    for _ in range(100):
        made.observe(image(), MODEL, device_s=3.0)
    assert made.cost_s(image(), MODEL) == pytest.approx(3.0, rel=1e-3)


def test_one_hiccup_of_the_device_does_not_close_the_door() -> None:
    made = admission()
    made.observe(image(), MODEL, device_s=1000.0)
    assert made.cost_s(image(), MODEL) < 1.5
    made.observe(image(), MODEL, device_s=0.0)  # nothing was measured
    assert 1.0 < made.cost_s(image(), MODEL) < 1.5


def test_an_idle_server_admits_anything() -> None:
    admission(1.0).admit(1000.0, workers=1, deadline_s=0.001)


def test_a_full_backlog_says_when_to_come_back() -> None:
    made = admission(10.0)
    made.admit(9.0, workers=1, deadline_s=None)
    with pytest.raises(Overloaded) as caught:
        made.admit(4.5, workers=1, deadline_s=None)
    assert caught.value.retry_after_s == 4
    assert made.backlog_s == 9.0
    made.admit(4.5, workers=2, deadline_s=None)


def test_retry_after_stays_in_its_bounds() -> None:
    made = admission(1.0)
    made.admit(1e6, workers=1, deadline_s=None)
    with pytest.raises(Overloaded) as caught:
        made.admit(0.1, workers=1, deadline_s=None)
    assert caught.value.retry_after_s == 120


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    made = admission(100.0)
    made.admit(5.0, workers=1, deadline_s=None)
    made.admit(1.0, workers=1, deadline_s=7.0)
    with pytest.raises(Overloaded, match="after its deadline of 6 s"):
        made.admit(1.0, workers=1, deadline_s=6.0)


def test_released_work_returns_the_backlog_to_exactly_zero() -> None:
    made = admission()
    costs = [0.1, 0.2, 0.3, 0.7]
    for cost_s in costs:
        made.admit(cost_s, workers=1, deadline_s=None)
    for cost_s in costs:
        made.release(cost_s)
    assert made.backlog_s == 0.0


def test_auto_steps_go_down_with_the_backlog() -> None:
    assert [auto_steps(backlog_s, step_down_s=2.0) for backlog_s in (0, 1.9, 2, 4, 6, 100)] == [
        4,
        4,
        3,
        2,
        1,
        1,
    ]


def load(worker: int, backlog_s: float, *sizes: tuple[int, int]) -> Load:
    return Load(worker, backlog_s, frozenset(sizes))


def test_the_least_loaded_worker_is_chosen() -> None:
    assert choose([load(0, 3.0), load(1, 2.0), load(2, 4.0)], size=(256, 256), cost_s=1.0) == 1


def test_a_worker_that_steps_this_size_is_worth_a_short_wait_and_no_longer_one() -> None:
    busy, idle = load(0, 0.9, (256, 256)), load(1, 0.0)
    assert choose([busy, idle], size=(256, 256), cost_s=1.0) == 0
    assert choose([busy, idle], size=(512, 512), cost_s=1.0) == 1
    assert choose([load(0, 1.1, (256, 256)), idle], size=(256, 256), cost_s=1.0) == 1
