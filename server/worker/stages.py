"""The stages of a picture on the device: encode, denoise, decode, each for several pictures in one step.

A step that raises is divided until what is at fault has failed alone.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto

import structlog
import torch

from model.conditioning import Prompt
from model.lora import Scaled
from model.pipeline import Pipeline, Pixels
from model.sampling import Sample
from server.batcher import Entry
from server.costs import Costs, StepKind
from server.errors import GenerationFailed, OutOfMemory
from server.generation import ImageRequest, Timings
from server.worker.source import source_of

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Work:
    """A picture in hand: its request, its place in the plan, its tensors once its text is encoded."""

    request: ImageRequest
    entry: Entry
    sample: Sample | None = None
    pixels: Pixels | None = None
    failure: GenerationFailed | None = None
    forgotten: bool = False  # nobody wants it any more
    adapters: tuple[Scaled, ...] = ()
    text_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    device_s: float = 0.0

    def record(self, kind: StepKind, *, seconds: float, device_s: float) -> None:
        """Add one step to the account: all of its seconds to the stage, the picture's share to the device."""
        self.device_s += device_s
        match kind:
            case StepKind.ENCODE:
                self.text_s += seconds
            case StepKind.DENOISE:
                self.denoise_s += seconds
            case StepKind.DECODE:
                self.decode_s += seconds
            case StepKind.DROP:
                pass

    def timings(self, *, encode_s: float, total_s: float) -> Timings:
        """Everything that was not spent in a stage is queueing, also the turns that other pictures took."""
        stages_s = self.text_s + self.denoise_s + self.decode_s + encode_s
        return Timings(
            queue_s=max(0.0, total_s - stages_s),
            text_s=self.text_s,
            denoise_s=self.denoise_s,
            decode_s=self.decode_s,
            encode_s=encode_s,
            total_s=total_s,
            device_s=self.device_s,
        )


class Trouble(Enum):
    """Why a step did not go through."""

    RAISED = auto()
    OUT_OF_MEMORY = auto()


@dataclass(slots=True)
class Stages:
    """Runs steps, for several threads at once."""

    pipeline: Pipeline
    costs: Costs
    _turns: "_Turns" = field(default_factory=lambda: _Turns())

    def run(self, kind: StepKind, works: Sequence[Work]) -> bool:
        """Run a step; what fails has its `failure` set. Returns whether all went through at once.

        Raises `torch.AcceleratorError`: after one every further call fails too, and only a new process helps.
        """
        with self._turns.among_others():
            trouble = self._try(kind, works)
        if trouble is not None:
            with self._turns.alone():  # with all the memory there is
                self._divide(kind, works, trouble)
        return trouble is None

    def _try(self, kind: StepKind, works: Sequence[Work]) -> Trouble | None:
        """Run a step; a stage of the pipeline either completes for all or changes nothing."""
        ids = [work.request.id for work in works]
        try:
            self._run(kind, works)
        except torch.AcceleratorError:
            raise
        except torch.OutOfMemoryError:
            log.warning("out_of_memory", kind=kind.value, images=ids)
            return Trouble.OUT_OF_MEMORY
        except Exception:  # whatever the model raises belongs to the pictures of this step
            log.exception("step_failed", kind=kind.value, images=ids)
            return Trouble.RAISED
        return None

    def _divide(self, kind: StepKind, works: Sequence[Work], trouble: Trouble, *, again: bool = True) -> None:
        """Run the halves of a step that did not go through, so that only what is at fault fails.

        Out of memory, the pipeline first frees what it keeps only to save work; halves then need less, and a
        picture alone is tried once more (`again`).
        """
        if trouble is Trouble.OUT_OF_MEMORY:
            self.pipeline.free()
        if len(works) > 1:
            middle = len(works) // 2
            halves = [works[:middle], works[middle:]]
            if trouble is Trouble.OUT_OF_MEMORY and kind is StepKind.DENOISE:
                self.costs.limit(sum(work.entry.shape.rows for work in works[middle:]))
        elif trouble is Trouble.OUT_OF_MEMORY and again:
            halves, again = [works], False
        else:
            works[0].failure = _failure(works[0].request, trouble)
            return
        for half in halves:
            if (found := self._try(kind, half)) is not None:
                self._divide(kind, half, found, again=again)

    def _run(self, kind: StepKind, works: Sequence[Work]) -> None:
        match kind:
            case StepKind.ENCODE:
                self._start_samples(works)
            case StepKind.DENOISE:
                self.pipeline.denoise_step([_sample(work) for work in works])
            case StepKind.DECODE:
                decoded = self.pipeline.decode([_sample(work) for work in works])
                for work, pixels in zip(works, decoded, strict=True):
                    work.pixels = pixels
            case StepKind.DROP:
                pass
        self.pipeline.synchronize()

    def _start_samples(self, works: Sequence[Work]) -> None:
        prompts = [prompt for work in works for prompt in self._prompts(work)]
        conditionings = dict(zip(prompts, self.pipeline.encode(prompts), strict=True))
        for work in works:
            prompt, *negative = self._prompts(work)
            work.sample = self.pipeline.start(
                conditioning=conditionings[prompt],
                negative=conditionings[negative[0]] if negative else None,
                width=work.request.width,
                height=work.request.height,
                steps=work.request.steps,
                seed=work.request.seed,
                guidance_scale=work.request.guidance_scale,
                source=source_of(work.request),
                adapters=work.adapters,
            )

    def _prompts(self, work: Work) -> list[Prompt]:
        request = work.request
        texts = [request.prompt]
        if self.pipeline.uses_negative(request.guidance_scale):
            texts.append(request.negative_prompt)
        return [Prompt(text, request.max_sequence_length, work.adapters) for text in texts]


class _Turns:
    """Many run among others, or one alone; who wants to be alone goes before those who come later."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._among_others = 0
        self._loners = 0
        self._is_alone = False

    @contextmanager
    def among_others(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._loners)
            self._among_others += 1
        try:
            yield
        finally:
            with self._changed:
                self._among_others -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._loners += 1
            self._changed.wait_for(lambda: not self._among_others and not self._is_alone)
            self._is_alone = True
        try:
            yield
        finally:
            with self._changed:
                self._loners -= 1
                self._is_alone = False
                self._changed.notify_all()


def _failure(request: ImageRequest, trouble: Trouble) -> GenerationFailed:
    if trouble is Trouble.OUT_OF_MEMORY:
        size = f"{request.width}x{request.height}"
        return OutOfMemory(f"the device has too little memory for a picture of {size}")
    return GenerationFailed("the model could not make this picture")


def _sample(work: Work) -> Sample:
    assert work.sample is not None, "a picture is denoised after its text is encoded"
    return work.sample
