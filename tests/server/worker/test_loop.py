"""The step loop on a pipeline that fails where it is told to: what is at fault fails alone."""

import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from model.conditioning import Conditioning, ConditioningCache, Prompt
from model.pipeline import Pipeline, PipelineInfo, Pixels
from server.costs import Costs, CostTable
from server.generation import GenerationRequest
from server.protocol import Cancel, Done, Failed, Stepped, Stop, Submit, ToFront
from server.worker.loop import Inbox, Loop

INFO = PipelineInfo(
    name="fake",
    digest="d",
    device="cpu",
    dtype="float32",
    numerics="exact",
    guidance_embed=False,
    default_width=16,
    default_height=16,
    default_steps=1,
    default_sequence_length=16,
)

LAUNCH_BOUND = CostTable(step_floor_s=1e-3, row_s=1e-6)  # sharing costs nothing, so that everybody shares


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

    def uses_negative(self, guidance_scale: float) -> bool:
        return guidance_scale > 1

    def synchronize(self) -> None:
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
        if f"fail {stage}" in prompts:
            raise RuntimeError(f"{stage} was told to fail")


@dataclass
class World:
    pipeline: FakePipeline
    inbox: Inbox
    sent: list[ToFront]
    arrived: threading.Condition

    def submit(self, name: str, prompt: str = "a", **changes: Any) -> None:
        fields = {"width": 16, "height": 16, "steps": 2, "seed": 7, "max_sequence_length": 16} | changes
        (image,) = GenerationRequest(id=name, prompt=prompt, **fields).images()
        self.inbox.put(Submit(image=image))

    def answers(self, count: int) -> dict[str, Done | Failed]:
        """Wait for `count` answers and return them by request."""

        def found() -> dict[str, Done | Failed]:
            kept = [message for message in self.sent if isinstance(message, Done | Failed)]
            return {message.id.partition("/")[0]: message for message in kept}

        with self.arrived:
            assert self.arrived.wait_for(lambda: len(found()) >= count, timeout=10), self.sent
            return found()


@contextmanager
def running(*, paused: bool = False) -> Iterator[World]:
    arrived = threading.Condition()
    sent: list[ToFront] = []

    def send(message: ToFront) -> None:
        with arrived:
            sent.append(message)
            arrived.notify_all()

    world = World(FakePipeline(), Inbox(), sent, arrived)
    if not paused:
        world.pipeline.gate.set()
    loop = Loop(
        pipeline=cast(Pipeline, world.pipeline), inbox=world.inbox, send=send, costs=Costs.of(LAUNCH_BOUND)
    )
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield world
    finally:
        world.pipeline.gate.set()
        world.inbox.put(Stop())
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


def test_a_cancelled_picture_is_not_made_and_said_to_be_forgotten() -> None:
    with running(paused=True) as world:
        world.submit("kept", steps=2)
        world.submit("cancelled", steps=12)
        world.inbox.put(Cancel(id="cancelled/0"))
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


def test_a_picture_that_cannot_be_encoded_is_answered() -> None:
    with running() as world:
        world.pipeline.info = replace(INFO, name="a\0b")  # no text chunk can hold this
        world.submit("a")
        answer = world.answers(1)["a"]
        assert isinstance(answer, Failed)
        assert answer.code == "generation_failed"


class Activations:
    """Stands for the tensors of a step: large, and gone when nobody refers to them."""


def test_a_step_that_runs_out_of_memory_is_freed_before_its_pictures_run_alone() -> None:
    left: list[weakref.ref[Activations]] = []

    class SmallDevice(FakePipeline):
        def denoise_step(self, samples: Sequence[FakeSample]) -> None:
            assert not any(each() for each in left), "the failed step still holds its memory"
            activations = Activations()
            left.append(weakref.ref(activations))
            if len(samples) > 1:
                raise torch.OutOfMemoryError("too many at once")
            super().denoise_step(samples)

    sent = run_through(SmallDevice(), requests=3)
    assert [type(message) for message in sent if isinstance(message, Done | Failed)] == [Done] * 3


def test_a_broken_device_ends_the_worker_and_fails_nobody() -> None:
    class BrokenDevice(FakePipeline):
        def denoise_step(self, samples: Sequence[FakeSample]) -> None:
            raise torch.AcceleratorError("an illegal memory access was encountered")

    sent: list[ToFront] = []
    with pytest.raises(torch.AcceleratorError):
        run_through(BrokenDevice(), requests=2, sent=sent)
    assert not any(isinstance(message, Failed) for message in sent)


def run_through(pipeline: FakePipeline, *, requests: int, sent: list[ToFront] | None = None) -> list[ToFront]:
    """Run the loop in this thread until it has answered all of its requests; return what it sent."""
    sent = [] if sent is None else sent
    inbox = Inbox()
    pipeline.gate.set()

    def send(message: ToFront) -> None:
        sent.append(message)
        if sum(isinstance(each, Done | Failed) for each in sent) == requests:
            inbox.put(Stop())

    for number in range(requests):
        fields = {"width": 16, "height": 16, "steps": 2, "seed": number, "max_sequence_length": 16}
        (image,) = GenerationRequest(id=str(number), prompt="a", **fields).images()  # type: ignore[arg-type]
        inbox.put(Submit(image=image))
    Loop(pipeline=cast(Pipeline, pipeline), inbox=inbox, send=send, costs=Costs.of(LAUNCH_BOUND)).run()
    return sent
