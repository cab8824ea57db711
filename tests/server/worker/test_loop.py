"""The step loop on a pipeline that fails where it is told to: what is at fault fails alone."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import msgspec
import numpy as np
import pytest
import torch

from model.conditioning import Conditioning, ConditioningCache, Prompt
from model.generate import EMBEDDED_MODEL
from model.layout import Numerics
from model.pipeline import Pipeline, PipelineInfo, Pixels
from model.preview import Previewer
from model.sampling import Sample
from server.batcher import Lane
from server.costs import Costs, CostTable
from server.generation import GenerationRequest, ImageRequest, Priority
from server.protocol import Cancel, Done, Failed, Revise, Stepped, Stepping, Stop, Submit, ToFront, ToWorker
from server.worker.loop import BESIDE, IN_TURN, Loop

INFO = PipelineInfo(
    name="fake",
    digest="d",
    device="cpu",
    dtype="float32",
    numerics="exact",
    quantize="none",
    guidance_embed=False,
    default_width=16,
    default_height=16,
    default_steps=1,
    default_sequence_length=16,
)

LAUNCH_BOUND = CostTable(step_floor_s=1.0, row_s=1e-6)  # sharing costs nothing, so that everybody shares
ROW_BOUND = CostTable(row_s=1e-6)  # sharing saves nothing, so that nobody does


@dataclass
class FakeSample:
    seed: int
    prompt: str
    size: tuple[int, int]
    steps: int = 0


@dataclass
class FakePipeline:
    """Obeys the pipeline's contract: a stage completes for all of its samples or changes none."""

    info: PipelineInfo = INFO
    conditioning: ConditioningCache = field(default_factory=lambda: ConditioningCache(0))
    gate: threading.Event = field(default_factory=threading.Event)
    shared: list[int] = field(default_factory=list)
    pause_s: float = 0.0

    def uses_negative(self, guidance_scale: float) -> bool:
        return guidance_scale > 1

    def stream(self) -> AbstractContextManager[None]:
        return nullcontext()

    def synchronize(self) -> None:
        pass

    def free(self) -> None:
        pass

    def encode(self, prompts: Sequence[Prompt]) -> list[Conditioning]:
        self._fail("encode", [prompt.text for prompt in prompts])
        return [cast(Conditioning, prompt.text) for prompt in prompts]

    def start(
        self, *, conditioning: Conditioning, seed: int, width: int, height: int, **_: Any
    ) -> FakeSample:
        return FakeSample(seed, str(conditioning), (width, height))

    def denoise_step(self, samples: Sequence[FakeSample]) -> None:
        self.gate.wait(10)
        self._fail("denoise", [sample.prompt for sample in samples])
        self.shared.append(len(samples))
        for sample in samples:
            sample.steps += 1

    def decode(self, samples: Sequence[FakeSample]) -> list[Pixels]:
        self._fail("decode", [sample.prompt for sample in samples])
        return [np.full((*sample.size[::-1], 3), sample.seed, np.uint8) for sample in samples]

    def _fail(self, stage: str, prompts: Sequence[str]) -> None:
        time.sleep(self.pause_s)
        if f"fail {stage}" in prompts:
            raise RuntimeError(f"{stage} was told to fail")


@dataclass
class FakePreviewer:
    def preview(self, sample: FakeSample) -> Pixels:
        return np.full((2, 2, 3), sample.steps, np.uint8)


@dataclass
class World:
    pipeline: FakePipeline
    loop: Loop
    sent: list[ToFront]
    arrived: threading.Condition

    def submit(self, name: str, prompt: str = "a", **changes: Any) -> None:
        self.loop.receive(submitted(name, prompt=prompt, **changes))

    def wait_for_steps(self, name: str, count: int) -> None:
        """Wait until `count` denoising steps of a picture have begun."""

        def found() -> int:
            steps = (message for message in self.sent if isinstance(message, Stepping) and message.lane == 0)
            return sum(f"{name}/0" in step.ids for step in steps)

        with self.arrived:
            assert self.arrived.wait_for(lambda: found() >= count, timeout=10), self.sent

    def answers(self, count: int) -> dict[str, Done | Failed]:
        """Wait for `count` answers and return them by request."""

        def found() -> dict[str, Done | Failed]:
            kept = [message for message in self.sent if isinstance(message, Done | Failed)]
            return {message.id.partition("/")[0]: message for message in kept}

        with self.arrived:
            assert self.arrived.wait_for(lambda: len(found()) >= count, timeout=10), self.sent
            return found()


@contextmanager
def running(
    pipeline: FakePipeline | None = None,
    *,
    previewer: FakePreviewer | None = None,
    paused: bool = False,
    in_turn: bool = False,
) -> Iterator[World]:
    arrived = threading.Condition()
    sent: list[ToFront] = []

    def send(message: ToFront) -> None:
        with arrived:
            sent.append(message)
            arrived.notify_all()

    pipeline = pipeline or FakePipeline()
    loop = Loop(
        pipeline=cast(Pipeline, pipeline),
        previewer=cast(Previewer, previewer or FakePreviewer()),
        send=send,
        costs=Costs.of(LAUNCH_BOUND),
        lanes=IN_TURN if in_turn else BESIDE,
    )
    world = World(pipeline, loop, sent, arrived)
    if not paused:
        world.pipeline.gate.set()
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield world
    finally:
        world.pipeline.gate.set()
        world.loop.receive(Stop())
        thread.join(10)
        assert not thread.is_alive()


def test_a_picture_is_made_and_accounted_for() -> None:
    with running() as world:
        world.submit("a", steps=3)
        answer = world.answers(1)["a"]
        assert isinstance(answer, Done)
        timings = answer.image.timings
        assert timings.total_s >= timings.text_s + timings.denoise_s + timings.decode_s + timings.encode_s
        kinds = [message.kind for message in world.sent if isinstance(message, Stepped)]
        assert kinds == ["encode", "denoise", "denoise", "denoise", "decode"]


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode"])
def test_a_picture_that_fails_in_a_stage_fails_alone(stage: str) -> None:
    with running(paused=True) as world:
        for name, prompt in (("good", "a"), ("bad", f"fail {stage}"), ("also good", "b")):
            world.submit(name, prompt)
        world.pipeline.gate.set()
        answers = world.answers(3)
        assert isinstance(answers["good"], Done)
        assert isinstance(answers["also good"], Done)
        assert isinstance(answers["bad"], Failed)
        assert answers["bad"].code == "generation_failed"
        assert stage not in answers["bad"].message, "what went wrong inside is for the log"


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


def test_a_picture_whose_latents_are_not_finite_fails_alone_and_before_it_is_decoded() -> None:
    def spoil(pipeline: Watched, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if sample.height == 272 and sample.step == 1:
                sample.latents[3, 5] = float("nan")

    *good, bad = images(3, steps=2, width=256, height=256)
    pipeline = watched(spoil)
    decoded: list[int] = []
    decode = pipeline.autoencoder.decode
    pipeline.autoencoder.decode = lambda latents: (decoded.append(latents.shape[2]), decode(latents))[1]
    spoiled = msgspec.structs.replace(bad, height=272)
    sent = run_through(pipeline, [*good, spoiled])
    assert set(pictures(sent)) == {"0", "1"}
    assert decoded == [32, 32]
    assert pictures(sent) == pictures(run_through(watched(lambda pipeline, samples: None), good))


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


class Activations:
    """Stands for the tensors of a step: large, and gone when nobody refers to them."""


def test_a_step_that_runs_out_of_memory_is_freed_before_fewer_pictures_run() -> None:
    left: list[weakref.ref[Activations]] = []

    class SmallDevice(FakePipeline):
        def denoise_step(self, samples: Sequence[FakeSample]) -> None:
            assert not any(each() for each in left), "the failed step still holds its memory"
            activations = Activations()
            left.append(weakref.ref(activations))
            if len(samples) > 1:
                raise torch.OutOfMemoryError("too many at once")
            super().denoise_step(samples)

    sent = run_through(SmallDevice(), images(3))
    assert [type(message) for message in sent if isinstance(message, Done | Failed)] == [Done] * 3


class Watched(Pipeline):
    """The real model, which notes its steps and first does what a test wants."""

    calls: list[int | str]
    before: "Callable[[Watched, Sequence[Sample]], None]"

    def denoise_step(self, samples: Sequence[Sample]) -> None:
        self.calls.append(len(samples))
        self.before(self, samples)
        super().denoise_step(samples)

    def free(self) -> None:
        self.calls.append("free")
        super().free()


def watched(before: Callable[[Watched, Sequence[Sample]], None]) -> Watched:
    cpu = torch.device("cpu")
    pipeline = Watched.load(EMBEDDED_MODEL, device=cpu, dtype=torch.float32, numerics=Numerics.EXACT)
    pipeline.calls, pipeline.before = [], before
    return pipeline


def pictures(sent: Sequence[ToFront]) -> dict[str, bytes]:
    return {message.id: message.image.data for message in sent if isinstance(message, Done)}


def test_a_step_is_halved_until_it_fits_and_the_pictures_stay_the_same() -> None:
    def at_most_two(pipeline: Watched, samples: Sequence[Sample]) -> None:
        if len(samples) > 2:
            raise torch.OutOfMemoryError("told to")

    requests = images(5, steps=1, width=256, height=256)
    small, large = watched(at_most_two), watched(lambda pipeline, samples: None)
    made = pictures(run_through(small, requests))
    assert small.calls == [5, "free", 2, 3, "free", 1, 2]
    assert made == pictures(run_through(large, requests))
    assert large.calls == [5]


def test_a_picture_that_does_not_fit_alone_fails_after_another_try_and_says_so() -> None:
    def not_of_two_steps(pipeline: Watched, samples: Sequence[Sample]) -> None:
        if any(len(sample.sigmas) == 3 for sample in samples):
            raise torch.OutOfMemoryError("told to")

    *good, bad = images(3, steps=1, width=256, height=272)
    pipeline = watched(not_of_two_steps)
    sent = run_through(pipeline, [*good, msgspec.structs.replace(bad, steps=2)])
    assert pipeline.calls == [3, "free", 1, 2, "free", 1, 1, "free", 1, "free"]
    assert set(pictures(sent)) == {"0", "1"}
    (failed,) = (message for message in sent if isinstance(message, Failed))
    assert (failed.id, failed.code) == ("2", "out_of_memory")
    assert failed.message == "the device has too little memory for a picture of 256x272"


def test_memory_that_is_free_after_all_is_enough() -> None:
    def before_it_was_freed(pipeline: Watched, samples: Sequence[Sample]) -> None:
        if "free" not in pipeline.calls:
            raise torch.OutOfMemoryError("told to")

    pipeline = watched(before_it_was_freed)
    assert len(pictures(run_through(pipeline, images(1, steps=1, width=256, height=256)))) == 1
    assert pipeline.calls == [1, "free", 1]


@pytest.mark.parametrize("bad", range(8))
def test_one_bad_picture_among_n_costs_two_runs_for_each_halving(bad: int) -> None:
    runs: list[int] = []

    class Strict(FakePipeline):
        def denoise_step(self, samples: Sequence[FakeSample]) -> None:
            runs.append(len(samples))
            if any(sample.seed == bad for sample in samples):
                raise RuntimeError("told to")
            super().denoise_step(samples)

    sent = run_through(Strict(), images(8, steps=1))
    assert len(runs) == 1 + 2 * 3
    assert sorted(runs) == [1, 1, 2, 2, 4, 4, 8]
    assert {message.id for message in sent if isinstance(message, Failed)} == {str(bad)}


def test_a_broken_device_ends_the_worker_and_fails_nobody() -> None:
    class BrokenDevice(FakePipeline):
        def denoise_step(self, samples: Sequence[FakeSample]) -> None:
            raise torch.AcceleratorError("an illegal memory access was encountered")

    sent: list[ToFront] = []
    with pytest.raises(torch.AcceleratorError):
        run_through(BrokenDevice(), images(2), sent)
    assert not any(isinstance(message, Failed) for message in sent)


def images(count: int, **changes: Any) -> list[ImageRequest]:
    """Requests with the ids and seeds 0, 1, 2..."""
    fields = {"prompt": "a", "width": 16, "height": 16, "steps": 2, "max_sequence_length": 16} | changes
    (first,) = GenerationRequest(id="0", **{"seed": 0} | fields).images()
    return [msgspec.structs.replace(first, id=str(n), seed=first.seed + n) for n in range(count)]


def run_through(
    pipeline: FakePipeline | Pipeline, requests: Sequence[ImageRequest], sent: list[ToFront] | None = None
) -> list[ToFront]:
    """Run the loop in this thread until it has answered all of its requests; return what it sent."""
    return hear(pipeline, [Submit(image=request) for request in requests], sent=sent)


def submitted(name: str, **changes: Any) -> Submit:
    (image,) = images(1, **changes)
    return Submit(image=msgspec.structs.replace(image, id=f"{name}/0"))


def hear(
    pipeline: FakePipeline | Pipeline,
    messages: Sequence[ToWorker],
    *,
    sent: list[ToFront] | None = None,
    costs: CostTable = LAUNCH_BOUND,
    lanes: Sequence[Lane] = BESIDE,
) -> list[ToFront]:
    """Run the loop in this thread on messages that are all there at the beginning, until all is answered."""
    sent = [] if sent is None else sent
    if isinstance(pipeline, FakePipeline):
        pipeline.gate.set()
    requests = sum(isinstance(message, Submit) for message in messages)

    def send(message: ToFront) -> None:
        sent.append(message)
        if sum(isinstance(each, Done | Failed) for each in sent) == requests:
            loop.receive(Stop())

    loop = Loop(
        pipeline=cast(Pipeline, pipeline),
        previewer=cast(Previewer, FakePreviewer()),
        send=send,
        costs=Costs.of(costs),
        lanes=lanes,
    )
    for message in messages:
        loop.receive(message)
    loop.run()
    return sent
