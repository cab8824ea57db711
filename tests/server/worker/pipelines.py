"""Pipelines for tests of the step loop, a fake and a watched real one, and the loop around them."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import torch

from model.conditioning import Conditioning, ConditioningCache, Prompt
from model.generate import EMBEDDED_MODEL
from model.info import PipelineInfo
from model.layout import Numerics
from model.lora import Adapter
from model.pipeline import Pipeline, Pixels
from model.preview import Previewer
from model.sampling import Sample
from server.batcher import Lane
from server.costs import Costs, CostTable
from server.generation import GenerationRequest, ImageRequest
from server.protocol import Done, Failed, Stepping, Stop, Submit, ToFront, ToWorker
from server.worker.adapters import Adapters, Load
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


def fake_adapter(path: Path, limit_bytes: int) -> Adapter:
    """An adapter whose digest is the name of its file."""
    return Adapter(path.name, {}, size_bytes=1)


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
    load: Load = fake_adapter,
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
        adapters=Adapters(load, limit_bytes=1 << 20),
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
    load: Load = fake_adapter,
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
        adapters=Adapters(load, limit_bytes=1 << 20),
        lanes=lanes,
    )
    for message in messages:
        loop.receive(message)
    loop.run()
    return sent
