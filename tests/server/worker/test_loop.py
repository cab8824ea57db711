"""The step loop: what is run, in which lane, and what is answered."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from model.conditioning import Conditioning, Prompt
from model.pipeline import Pixels
from server.generation import Priority
from server.protocol import Cancel, Done, Failed, Revise, Stepped, Stepping, ToFront
from server.worker.loop import IN_TURN
from tests.server.worker.pipelines import (
    INFO,
    ROW_BOUND,
    FakePipeline,
    FakeSample,
    hear,
    running,
    submitted,
)


def test_a_picture_is_made_and_accounted_for() -> None:
    with running() as world:
        world.submit("a", steps=3)
        answer = world.answers(1)["a"]
        assert isinstance(answer, Done)
        timings = answer.image.timings
        assert timings.total_s >= timings.text_s + timings.denoise_s + timings.decode_s + timings.encode_s
        kinds = [message.kind for message in world.sent if isinstance(message, Stepped)]
        assert kinds == ["encode", "denoise", "denoise", "denoise", "decode"]


def test_a_newcomer_joins_between_steps() -> None:
    with running(paused=True) as world:
        world.submit("first", steps=8)
        world.submit("second", steps=2)
        world.pipeline.gate.set()
        assert len(world.answers(2)) == 2
        assert max(world.pipeline.shared) == 2


def test_a_decode_and_an_encoding_stall_nobody_who_could_step() -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    class Slow(FakePipeline):
        def decode(self, samples: Sequence[FakeSample]) -> list[Pixels]:
            begun.release()
            assert go_on.wait(10)
            return super().decode(samples)

        def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
            if any(prompt.text == "slow" for prompt in prompts):
                begun.release()
                assert go_on.wait(10)
            return super().encode(prompts)

    with running(Slow(), paused=True) as world:
        world.submit("decoding", steps=1)
        world.submit("stepping", steps=12)
        world.pipeline.gate.set()
        assert begun.acquire(timeout=10)
        world.wait_for_steps("stepping", 12)
        go_on.set()
        world.answers(2)
        go_on.clear()
        world.pipeline.gate.clear()
        world.submit("stepping too", steps=12)
        world.wait_for_steps("stepping too", 1)
        world.submit("encoding", "slow")
        assert begun.acquire(timeout=10)
        world.pipeline.gate.set()
        world.wait_for_steps("stepping too", 12)
        go_on.set()
        world.answers(4)


def test_with_one_lane_stages_take_turns() -> None:
    at_once: list[int] = []
    running_now = threading.Semaphore(1)

    class Single(FakePipeline):
        def _fail(self, stage: str, prompts: Sequence[str]) -> None:
            at_once.append(running_now.acquire(blocking=False))
            super()._fail(stage, prompts)

        def synchronize(self) -> None:
            running_now.release()

    hear(Single(), [submitted(str(n), steps=3) for n in range(6)], lanes=IN_TURN)
    assert len(at_once) > 6
    assert all(at_once)


def test_device_seconds_of_steps_at_the_same_time_count_once() -> None:
    began = time.monotonic()
    sent = hear(FakePipeline(pause_s=0.01), [submitted(str(n), steps=4) for n in range(8)])
    seconds = time.monotonic() - began
    stepped_s = sum(message.seconds for message in sent if isinstance(message, Stepped))
    pictures_s = sum(message.image.timings.device_s for message in sent if isinstance(message, Done))
    assert stepped_s == pytest.approx(pictures_s)
    assert stepped_s <= seconds


def test_a_step_says_whom_it_is_for_before_it_begins() -> None:
    sent = hear(FakePipeline(), [submitted("a", steps=2)])
    told = [message for message in sent if isinstance(message, Stepping | Stepped)]
    assert [type(message) for message in told] == [Stepping, Stepped] * 4
    assert all(message.ids == ["a/0"] for message in told if isinstance(message, Stepping))
    assert [message.lane for message in told] == [1, 1, 0, 0, 0, 0, 1, 1]


def test_a_cancelled_picture_is_not_made_and_said_to_be_forgotten() -> None:
    with running(paused=True) as world:
        world.submit("kept", steps=2)
        world.submit("cancelled", steps=12)
        world.loop.receive(Cancel(id="cancelled/0"))
        world.pipeline.gate.set()
        answers = world.answers(2)
        assert isinstance(answers["kept"], Done)
        assert isinstance(answers["cancelled"], Failed)
        assert answers["cancelled"].code == "cancelled"
        assert world.pipeline.shared[-1] == 1, "it took part in no later step"


def test_a_picture_that_is_forgotten_or_fails_says_what_its_steps_took() -> None:
    with running(FakePipeline(pause_s=0.01), paused=True) as world:
        world.submit("never begun", steps=2)
        world.loop.receive(Cancel(id="never begun/0"))
        world.submit("forgotten", steps=12)
        world.pipeline.gate.set()
        world.wait_for_steps("forgotten", 3)
        world.pipeline.gate.clear()  # within a step, or before the next
        world.loop.receive(Cancel(id="forgotten/0"))
        world.pipeline.gate.set()
        answers = world.answers(2)
        stepped_s = sum(message.seconds for message in world.sent if isinstance(message, Stepped))
    forgotten, never_begun = answers["forgotten"], answers["never begun"]
    assert isinstance(forgotten, Failed)
    assert isinstance(never_begun, Failed)
    assert never_begun.device_s == 0
    assert forgotten.device_s == pytest.approx(stepped_s)
    assert stepped_s > 0.03


def test_a_deadline_that_has_passed_is_answered() -> None:
    with running() as world:
        world.submit("late", deadline_s=0.0)
        answer = world.answers(1)["late"]
        assert isinstance(answer, Failed)
        assert answer.code == "deadline_exceeded"


@pytest.mark.parametrize(("first_s", "then_s", "kind"), [(0.0, None, Done), (None, 0.0, Failed)])
def test_a_picture_has_the_deadline_that_was_told_last(
    first_s: float | None, then_s: float | None, kind: type[ToFront]
) -> None:
    revised = Revise(id="a/0", priority=Priority.NORMAL, deadline_s=then_s)
    sent = hear(FakePipeline(), [submitted("a", deadline_s=first_s), revised])
    (answer,) = (message for message in sent if isinstance(message, Done | Failed))
    assert type(answer) is kind


def test_a_picture_that_becomes_urgent_overtakes() -> None:
    class Watched(FakePipeline):
        def denoise_step(self, samples: Sequence[FakeSample]) -> None:
            order.extend(sample.seed for sample in samples)
            super().denoise_step(samples)

    order: list[int] = []
    messages = [
        submitted("first", seed=1, steps=3),
        submitted("urgent", seed=2, width=32, steps=3, priority=Priority.LOW),
        Revise(id="urgent/0", priority=Priority.HIGH, deadline_s=None),
        Revise(id="unknown/0", priority=Priority.HIGH, deadline_s=0.0),
    ]
    hear(Watched(), messages, costs=ROW_BOUND)
    assert order == [2, 2, 2, 1, 1, 1]


def test_a_key_with_one_picture_does_not_wait_for_all_of_one_with_many() -> None:
    class Watched(FakePipeline):
        def decode(self, samples: Sequence[FakeSample]) -> list[Pixels]:
            order.extend(sample.prompt for sample in samples)
            return super().decode(samples)

    order: list[str] = []
    messages = [submitted(f"many {n}", prompt="many", seed=n, key="many", steps=2) for n in range(20)]
    messages += [submitted(f"few {n}", prompt="few", seed=n, key="few", steps=2) for n in range(2)]
    hear(Watched(), messages, costs=ROW_BOUND)
    assert len(order) == 22
    # Shared evenly, the second of the few is due when as many of the other key are; what is begun goes on.
    assert order[:6].count("few") == 2


def test_a_picture_that_cannot_be_encoded_is_answered() -> None:
    with running() as world:
        world.pipeline.info = replace(INFO, name="a\0b")  # no text chunk can hold this
        world.submit("a")
        answer = world.answers(1)["a"]
        assert isinstance(answer, Failed)
        assert answer.code == "generation_failed"
