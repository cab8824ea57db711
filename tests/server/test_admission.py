"""The bound on the backlog, the estimates behind it, and the router."""

import msgspec
import pytest

from server.admission import Admission, Admitted
from server.costs import CostTable, StepKind
from server.errors import Overloaded
from server.generation import GenerationRequest, ImageRequest, Priority, Source
from server.router import Load, choose
from tests.server.models import MODEL

# A picture of 256x256 in four steps costs one second: 0.2 s a step and 0.2 s for its pixels.
COSTS = CostTable(row_s=0.2 / (256 + 64), decode_pixel_s=0.2 / 256**2)


def image(**changes: object) -> ImageRequest:
    fields = {"id": "a", "prompt": "", "width": 256, "height": 256, "steps": 4, "seed": 0}
    fields |= {"max_sequence_length": 64} | changes
    return GenerationRequest(**fields).images()[0]  # type: ignore[arg-type]


def admission(max_backlog_s: float = 10.0) -> Admission:
    made = Admission(max_backlog_s)
    made.start_from(COSTS)
    return made


def admit(
    made: Admission, *images: ImageRequest, workers: int = 1, deadline_s: float | None = None
) -> list[Admitted]:
    return made.admit(images or (image(),), MODEL, workers=workers, deadline_s=deadline_s)


def cost_s(made: Admission, **changes: object) -> float:
    before_s = made.backlog_s
    (admitted,) = admit(made, image(**changes), workers=1000)
    after_s = made.backlog_s
    made.release(admitted, finished=False)
    return after_s - before_s


def test_a_picture_costs_what_the_table_says() -> None:
    assert cost_s(admission()) == pytest.approx(1.0)


def test_a_lone_picture_of_another_key_is_forecast_before_a_crowd() -> None:
    made = admission(1000.0)
    admit(made, *(image(key="crowd") for _ in range(40)))
    (same,) = admit(made, image(key="crowd"))
    (lone,) = admit(made, image(key="lone"))
    assert lone.forecast_s < same.forecast_s / 4


def test_cost_grows_with_tokens_steps_and_guidance() -> None:
    made = admission()
    assert cost_s(made, width=512, height=512) == pytest.approx(4 * 0.2 * 1088 / 320 + 0.8)
    assert cost_s(made, steps=9) == pytest.approx(2.0)
    assert cost_s(made, guidance_scale=3.0) == pytest.approx(9 / 5)


def test_a_source_costs_its_encoding_and_saves_the_steps_that_it_leaves_out() -> None:
    made = admission()
    encoding_s = 0.2 / 2  # half a decode
    assert cost_s(made, source=Source(pixels=b"", strength=0.5)) == pytest.approx(0.6 + encoding_s)
    assert cost_s(made, source=Source(pixels=b"", strength=1.0)) == pytest.approx(1.0), "nobody looks at it"
    masked = Source(pixels=b"", strength=1.0, mask=b"")
    assert cost_s(made, source=masked) == pytest.approx(1.0 + encoding_s)


def test_the_backlog_follows_what_pictures_really_cost() -> None:
    made = admission()
    for _ in range(100):
        (admitted,) = admit(made)
        made.observe(admitted, device_s=3.0)
        made.release(admitted, finished=True)
    assert cost_s(made) == pytest.approx(3.0, rel=1e-3)


def test_one_hiccup_of_the_device_does_not_close_the_door() -> None:
    made = admission()
    (admitted,) = admit(made)
    made.observe(admitted, device_s=1000.0)
    assert cost_s(made) < 1.5
    made.observe(admitted, device_s=0.0)  # nothing was measured
    assert 1.0 < cost_s(made) < 1.5


def test_an_idle_server_admits_anything() -> None:
    admit(admission(1.0), image(steps=1000), deadline_s=0.001)


def test_a_full_backlog_says_when_to_come_back() -> None:
    made = admission(10.0)
    admit(made, *(image() for _ in range(9)))
    with pytest.raises(Overloaded) as caught:
        admit(made, *(image() for _ in range(4)))
    assert caught.value.retry_after_s == 3
    assert made.backlog_s == pytest.approx(9.0)
    admit(made, *(image() for _ in range(4)), workers=2)


def test_retry_after_stays_in_its_bounds() -> None:
    made = admission(1.0)
    admit(made, image(steps=1_000_000))
    with pytest.raises(Overloaded) as caught:
        admit(made)
    assert caught.value.retry_after_s == 120


def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    made = admission(100.0)
    in_hand = admit(made, *(image() for _ in range(5)))
    admit(made, deadline_s=7.0)
    with pytest.raises(Overloaded, match=r"would finish in about 7.0 s, after its deadline of 5 s") as caught:
        admit(made, deadline_s=5.0)
    assert caught.value.retry_after_s == 3
    assert made.backlog_s == pytest.approx(6.0)
    made.release(admit(made, deadline_s=5.0, workers=2)[0], finished=False)
    for second in range(3):
        with pytest.raises(Overloaded) as caught:
            admit(made, deadline_s=5.0)
        assert caught.value.retry_after_s == 3 - second
        made.release(in_hand[second], finished=True)
    admit(made, deadline_s=5.0)


def test_a_refusal_waits_for_both_the_backlog_and_the_deadline() -> None:
    made = admission(10.0)
    admit(made, *(image() for _ in range(10)))
    with pytest.raises(Overloaded, match=r"the backlog is 10\.0 s") as caught:
        admit(made)
    assert caught.value.retry_after_s == 1
    with pytest.raises(Overloaded, match=r"the backlog is 10\.0 s") as caught:
        admit(made, deadline_s=3.0)
    assert caught.value.retry_after_s > 5


def test_what_only_an_idle_server_admits_waits_for_one() -> None:
    made = admission(10.0)
    admit(made, *(image() for _ in range(6)))
    for refused in ({"steps": 100}, {}):
        with pytest.raises(Overloaded) as caught:
            admit(made, image(**refused), deadline_s=0.01)
        assert caught.value.retry_after_s == 6


def test_small_and_urgent_pictures_are_promised_an_earlier_end() -> None:
    made = admission(1000.0)
    admit(made, *(image(width=1024, height=1024) for _ in range(5)))
    with pytest.raises(Overloaded):
        admit(made, image(width=1024, height=1024), deadline_s=30.0)
    admit(made, image(), deadline_s=15.0)
    admit(made, image(width=1024, height=1024, priority=Priority.HIGH), deadline_s=30.0)


def test_all_pictures_of_a_request_have_its_deadline() -> None:
    made = admission(100.0)
    admit(made)
    admit(made, image(), deadline_s=3.0)
    with pytest.raises(Overloaded):
        admit(made, image(), image(), deadline_s=3.0)


@pytest.mark.parametrize("finished", [True, False])
def test_what_leaves_returns_the_backlog_to_exactly_zero(finished: bool) -> None:
    made = admission(1000.0)
    admitted = admit(made, *(image(steps=steps) for steps in (1, 2, 3, 7)))
    for each in admitted:
        made.release(each, finished=finished)
    assert made.backlog_s == 0.0
    admit(made)
    admit(made, deadline_s=2.1)  # promised as if nothing had ever been there


def test_auto_steps_go_down_with_the_backlog_of_each_worker() -> None:
    made = Admission(1000.0, step_down_s=(1.5, 4.5, 6.0))
    made.start_from(COSTS)
    chosen = []
    for _ in range(8):
        chosen.append(made.auto_steps(MODEL, workers=1))
        admit(made)
    assert chosen == [4, 4, 3, 3, 3, 2, 1, 1]
    assert made.auto_steps(MODEL, workers=2) == 3
    assert made.auto_steps(msgspec.structs.replace(MODEL, max_steps=2), workers=2) == 2


def test_every_step_takes_its_part_out_of_the_backlog() -> None:
    made = admission()
    first, second = admit(made, image(), image())
    left = []
    for kind in (StepKind.ENCODE, *[StepKind.DENOISE] * 4, StepKind.DECODE):
        made.progress(first, kind)
        left.append(round(made.backlog_s, 6))
    assert left == [2.0, 1.8, 1.6, 1.4, 1.2, 1.0]
    made.progress(first, StepKind.DECODE)  # of a step that was said twice nothing is left to take
    assert made.backlog_s == pytest.approx(1.0)
    made.release(first, finished=True)
    made.progress(second, StepKind.DENOISE)
    made.restart(second)
    assert made.backlog_s == pytest.approx(1.0)
    made.release(second, finished=False)
    assert made.backlog_s == 0.0


def test_a_position_is_how_many_are_due_before() -> None:
    made = admission(1000.0)
    large, first, second = admit(made, image(width=1024, height=1024), image(), image())
    (urgent,) = admit(made, image(priority=Priority.HIGH))
    assert [made.position(each) for each in (urgent, first, second, large)] == [0, 1, 2, 3]
    made.release(first, finished=True)
    assert made.position(second) == 1


def test_asking_for_a_forecast_changes_nothing() -> None:
    made = admission(1000.0)
    assert made.forecast_s(image(), MODEL, workers=1) == pytest.approx(1.0)
    admit(made, *(image() for _ in range(3)))
    before_s = made.backlog_s
    asked = [made.forecast_s(image(), MODEL, workers=1) for _ in range(3)]
    assert asked[0] == asked[2] == pytest.approx(admit(made)[0].forecast_s)
    assert made.backlog_s == pytest.approx(before_s + 1.0)


def load(worker: int, backlog_s: float, *sizes: tuple[int, int]) -> Load:
    return Load(worker, backlog_s, frozenset(sizes))


def test_the_least_loaded_worker_is_chosen() -> None:
    assert choose([load(0, 3.0), load(1, 2.0), load(2, 4.0)], size=(256, 256), saved_s=1.0) == 1


def test_a_worker_that_steps_this_size_is_worth_a_short_wait_and_no_longer_one() -> None:
    busy, idle = load(0, 0.9, (256, 256)), load(1, 0.0)
    assert choose([busy, idle], size=(256, 256), saved_s=1.0) == 0
    assert choose([busy, idle], size=(512, 512), saved_s=1.0) == 1
    assert choose([load(0, 1.1, (256, 256)), idle], size=(256, 256), saved_s=1.0) == 1
