"""The step loop: takes what the front end sends, asks the batcher for a step, runs it, answers.

One thread drives the device; a reader thread fills the inbox and encoder threads turn pixels into files
beside it. What to run next is the batcher's decision, how to run it the pipeline's.
"""

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import structlog
import torch

from model.conditioning import Prompt
from model.pipeline import Pipeline, Pixels
from model.sampling import Sample
from server import __version__
from server.batcher import Batcher, Entry, Step
from server.costs import Costs, StepKind, Timed
from server.errors import Cancelled, DeadlineExceeded, GenerationFailed, OutOfMemory
from server.generation import Image, ImageRequest, Timings, content_type
from server.protocol import (
    CacheReport,
    Cancel,
    Done,
    Failed,
    Revise,
    Start,
    Stepped,
    Stop,
    Submit,
    ToFront,
    ToWorker,
)
from server.worker.encode import Provenance, encode_image

ENCODER_THREADS: Final = 2

log = structlog.get_logger(__name__)

Send = Callable[[ToFront], None]
Inbox = queue.SimpleQueue[ToWorker]


@dataclass(slots=True)
class Work:
    """A picture in hand: its request, its place in the plan, its tensors once its text is encoded."""

    request: ImageRequest
    entry: Entry
    sample: Sample | None = None
    pixels: Pixels | None = None
    failure: GenerationFailed | None = None
    text_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    device_s: float = 0.0


@dataclass(slots=True)
class Loop:
    """Runs until it is told to stop. `clock` counts seconds and never goes back."""

    pipeline: Pipeline
    inbox: Inbox
    send: Send
    costs: Costs
    clock: Callable[[], float] = time.monotonic
    _works: dict[str, Work] = field(default_factory=dict)
    _reported: tuple[int, int] = (0, 0)

    def run(self) -> None:
        """Plan and run steps; sleep on the inbox only when nothing is in hand."""
        batcher = Batcher(self.costs)
        with ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="encoder") as encoders:
            while self._receive(batcher):
                step = batcher.plan(self.clock())
                if step is None:
                    continue
                failed = self._run_step(step)
                for entry in batcher.complete(step, failed=failed):
                    self._leave(self._works.pop(entry.id), encoders)

    def _receive(self, batcher: Batcher) -> bool:
        """Take in all messages that wait, and at least one when nothing is in hand; False means stop."""
        while True:
            try:
                message = self.inbox.get(block=len(batcher) == 0)
            except queue.Empty:
                return True
            match message:
                case Submit(image=request):
                    self._take(request, batcher)
                case Cancel(id=image_id):
                    batcher.cancel(image_id)
                    self._works.pop(image_id, None)
                    self.send(Failed(id=image_id, code=Cancelled.code, message="forgotten"))
                case Revise(id=image_id, priority=priority, deadline_s=left_s):
                    deadline_s = None if left_s is None else self.clock() + left_s
                    batcher.revise(image_id, priority=priority, deadline_s=deadline_s)
                case Stop() | Start():
                    return False

    def _take(self, request: ImageRequest, batcher: Batcher) -> None:
        now = self.clock()
        entry = Entry(
            id=request.id,
            width=request.width,
            height=request.height,
            steps=request.steps,
            arrived_s=now,
            txt_rows=request.max_sequence_length,
            passes=2 if self.pipeline.uses_negative(request.guidance_scale) else 1,
            priority=request.priority,
            deadline_s=None if request.deadline_s is None else now + request.deadline_s,
        )
        self._works[request.id] = Work(request, entry)
        batcher.add(entry)

    def _run_step(self, step: Step) -> set[str]:
        """Run one step; return the ids of the pictures that it failed for."""
        if step.kind is StepKind.DROP:
            return set()
        works = [self._works[entry.id] for entry in step.entries]
        began_s = self.clock()
        failed = self._attempt(step.kind, works)
        seconds = self.clock() - began_s
        for work in works:
            _record(work, step.kind, seconds=seconds, share=work.entry.tokens / step.tokens)
        self.send(Stepped(kind=step.kind.value, images=len(works), tokens=step.tokens, seconds=seconds))
        if not failed:
            self.costs.refine(Timed(step.kind, tuple(entry.shape for entry in step.entries), seconds))
        if step.kind is StepKind.ENCODE:
            self._report_cache()
        return failed

    def _attempt(self, kind: StepKind, works: Sequence[Work], *, again: bool = True) -> set[str]:
        """Run a step for all; if that raises, for each half alone, so that only what is at fault fails.

        Out of memory, the pipeline first frees what it keeps only to save work; halves then need less, and a
        picture alone is tried once more (`again`). A pipeline stage either completes for all or changes
        nothing, so nothing is run twice. Returns the ids of the pictures that failed; their works say why.

        Raises `torch.AcceleratorError`: after one every further call fails too, and only a new process helps.
        """
        ids = [work.request.id for work in works]
        fits = True
        try:
            self._stage(kind, works)
            return set()
        except torch.AcceleratorError:
            raise
        except torch.OutOfMemoryError:
            log.warning("out_of_memory", kind=kind.value, images=ids)
            fits = False
        except Exception:  # whatever the model raises belongs to the pictures of this step
            log.exception("step_failed", kind=kind.value, images=ids)
        # Here the exception is gone, and with its frames the tensors of the step that ran out of memory.
        if not fits:
            self.pipeline.free()
        if len(works) > 1:
            middle = len(works) // 2
            if not fits and kind is StepKind.DENOISE:
                self.costs.limit(sum(work.entry.shape.rows for work in works[middle:]))
            return self._attempt(kind, works[:middle]) | self._attempt(kind, works[middle:])
        if not fits and again:
            return self._attempt(kind, works, again=False)
        (work,) = works
        work.failure = GenerationFailed("the model could not make this picture")
        if not fits:
            size = f"{work.request.width}x{work.request.height}"
            work.failure = OutOfMemory(f"the device has too little memory for a picture of {size}")
        return {work.request.id}

    def _stage(self, kind: StepKind, works: Sequence[Work]) -> None:
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
        prompts = [prompt for work in works for prompt in self._prompts(work.request)]
        conditionings = dict(zip(prompts, self.pipeline.encode(prompts), strict=True))
        for work in works:
            prompt, *negative = self._prompts(work.request)
            work.sample = self.pipeline.start(
                conditioning=conditionings[prompt],
                negative=conditionings[negative[0]] if negative else None,
                width=work.request.width,
                height=work.request.height,
                steps=work.request.steps,
                seed=work.request.seed,
                guidance_scale=work.request.guidance_scale,
            )

    def _prompts(self, request: ImageRequest) -> list[Prompt]:
        texts = [request.prompt]
        if self.pipeline.uses_negative(request.guidance_scale):
            texts.append(request.negative_prompt)
        return [Prompt(text, request.max_sequence_length) for text in texts]

    def _leave(self, work: Work, encoders: ThreadPoolExecutor) -> None:
        """Answer a picture that left the plan, a finished one from an encoder thread."""
        if work.failure is not None:
            self.send(Failed(id=work.request.id, code=work.failure.code, message=work.failure.message))
        elif work.pixels is None:
            message = "the picture cannot be finished within the deadline of its request"
            self.send(Failed(id=work.request.id, code=DeadlineExceeded.code, message=message))
        else:
            encoders.submit(self._finish, work, work.pixels)

    def _finish(self, work: Work, pixels: Pixels) -> None:
        began_s = self.clock()
        request = work.request
        try:
            data = encode_image(
                pixels,
                image_format=request.image_format,
                quality=request.quality,
                provenance=self._provenance(request),
            )
        except Exception:  # nobody looks at this thread's result, and the client waits
            log.exception("encode_failed", image=request.id)
            message = "the picture could not be encoded"
            self.send(Failed(id=request.id, code=GenerationFailed.code, message=message))
            return
        now = self.clock()
        image = Image(
            data=data,
            content_type=content_type(request.image_format),
            width=request.width,
            height=request.height,
            seed=request.seed,
            timings=_timings(work, encode_s=now - began_s, total_s=now - work.entry.arrived_s),
        )
        self.send(Done(id=request.id, image=image))

    def _provenance(self, request: ImageRequest) -> Provenance:
        info = self.pipeline.info
        return Provenance(
            seed=request.seed,
            width=request.width,
            height=request.height,
            steps=request.steps,
            numerics=info.numerics,
            quantize=info.quantize,
            model=info.name,
            digest=info.digest,
            version=__version__,
            prompt=request.prompt if request.embed_prompt else None,
        )

    def _report_cache(self) -> None:
        cache = self.pipeline.conditioning
        if (cache.hits, cache.misses) != self._reported:
            self._reported = (cache.hits, cache.misses)
            self.send(CacheReport(hits=cache.hits, misses=cache.misses, size_bytes=cache.size_bytes))


def _sample(work: Work) -> Sample:
    assert work.sample is not None, "a picture is denoised after its text is encoded"
    return work.sample


def _record(work: Work, kind: StepKind, *, seconds: float, share: float) -> None:
    """Add one step to a picture's account: all of its seconds to the stage, its share to the device."""
    work.device_s += seconds * share
    match kind:
        case StepKind.ENCODE:
            work.text_s += seconds
        case StepKind.DENOISE:
            work.denoise_s += seconds
        case StepKind.DECODE:
            work.decode_s += seconds
        case StepKind.DROP:
            pass


def _timings(work: Work, *, encode_s: float, total_s: float) -> Timings:
    """Everything that was not spent in a stage is queueing, also the turns that other pictures took."""
    stages_s = work.text_s + work.denoise_s + work.decode_s + encode_s
    return Timings(
        queue_s=max(0.0, total_s - stages_s),
        text_s=work.text_s,
        denoise_s=work.denoise_s,
        decode_s=work.decode_s,
        encode_s=encode_s,
        total_s=total_s,
        device_s=work.device_s,
    )
