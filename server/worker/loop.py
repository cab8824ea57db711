"""The step loop: takes what the front end sends, asks the batcher for steps, has them run, answers.

What to run next is the batcher's decision, how to run it the pipeline's. Each lane has a thread and, on a
GPU, a stream of its own: one denoises, one encodes texts, decodes latents and makes previews beside it.
Encoder threads turn pixels into files.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import structlog
import torch

from model.pipeline import Pipeline, Pixels
from model.preview import Previewer
from server import __version__
from server.batcher import ONE_LANE, Batcher, Entry, Lane, Step
from server.costs import Costs, StepKind, Timed
from server.errors import Cancelled, DeadlineExceeded, GenerationFailed, ServerError
from server.generation import Image, ImageRequest, content_type
from server.protocol import (
    CacheReport,
    Cancel,
    Done,
    Failed,
    Previewed,
    Revise,
    Start,
    Stepped,
    Stepping,
    Stop,
    Submit,
    ToFront,
    ToWorker,
)
from server.worker.adapters import Adapters
from server.worker.encode import Provenance, encode_image
from server.worker.meter import Meter
from server.worker.previews import Moment, Previews, encode_preview
from server.worker.source import blended, check_source
from server.worker.stages import Stages, Work

ENCODER_THREADS: Final = 2
BESIDE: Final[Sequence[Lane]] = (
    frozenset({StepKind.DENOISE}),
    frozenset({StepKind.ENCODE, StepKind.DECODE}),
)
IN_TURN: Final[Sequence[Lane]] = (ONE_LANE,)  # where memory does not hold two stages at once

log = structlog.get_logger(__name__)

Send = Callable[[ToFront], None]


@dataclass(slots=True)
class Loop:
    """Runs until it is told to stop. `clock` counts seconds and never goes back.

    The monitor guards the plan and the pictures in hand; nobody holds it while the device works.
    """

    pipeline: Pipeline
    previewer: Previewer
    send: Send
    costs: Costs
    adapters: Adapters
    lanes: Sequence[Lane] = BESIDE
    clock: Callable[[], float] = time.monotonic
    _batcher: Batcher = field(init=False)
    _stages: Stages = field(init=False)
    _encoders: ThreadPoolExecutor = field(init=False)
    _works: dict[str, Work] = field(default_factory=dict)
    _previews: Previews = field(default_factory=Previews)
    _meter: Meter = field(default_factory=Meter)
    _monitor: threading.Condition = field(default_factory=threading.Condition)
    _stopping: bool = False
    _reported: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self._batcher = Batcher(self.costs)
        self._stages = Stages(self.pipeline, self.costs)
        self._encoders = ThreadPoolExecutor(ENCODER_THREADS, thread_name_prefix="encoder")

    def run(self) -> None:
        """Drive every lane until `Stop`; raises `torch.AcceleratorError` when the device is lost."""
        with self._encoders, ThreadPoolExecutor(len(self.lanes), thread_name_prefix="lane") as drivers:
            driven = [drivers.submit(self._drive, lane) for lane in self.lanes]
        for each in driven:
            each.result()

    def receive(self, message: ToWorker) -> None:
        """Take in what the front end sent; from one thread at a time, and also before `run`."""
        if (answer := self.adapters.answer(message)) is not None:
            self.send(answer)
            return
        if isinstance(message, Submit):
            try:
                check_source(message.image)
            except GenerationFailed as fault:
                self.send(Failed(id=message.image.id, code=fault.code, message=fault.message))
                return
        left: list[Work] = []
        with self._monitor:
            match message:
                case Submit(image=request):
                    self._take(request)
                case Cancel(id=image_id):
                    left = self._forget(image_id)
                case Revise(id=image_id, priority=priority, deadline_s=left_s):
                    deadline_s = None if left_s is None else self.clock() + left_s
                    self._batcher.revise(image_id, priority=priority, deadline_s=deadline_s)
                case Stop() | Start():
                    self._stopping = True
            self._monitor.notify_all()
        for work in left:
            self._leave(work)

    def _take(self, request: ImageRequest) -> None:
        now = self.clock()
        entry = Entry(
            id=request.id,
            width=request.width,
            height=request.height,
            steps=request.run_steps,
            arrived_s=now,
            txt_rows=request.max_sequence_length,
            passes=2 if self.pipeline.uses_negative(request.guidance_scale) else 1,
            has_source=request.encodes_source,
            key=request.key,
            priority=request.priority,
            deadline_s=None if request.deadline_s is None else now + request.deadline_s,
        )
        self._works[request.id] = Work(request, entry, adapters=self.adapters.find(request.adapters))
        self._batcher.add(entry)

    def _forget(self, image_id: str) -> list[Work]:
        """Drop a picture, and return it if it leaves now; one that is in a step leaves when that is over."""
        in_step = self._batcher.cancel(image_id)
        work = self._works.pop(image_id, None)
        if work is None:
            return []  # it has left, and its answer is on its way
        work.forgotten = True
        return [] if in_step else [work]

    def _drive(self, lane: Lane) -> None:
        """Run the steps of a lane one after another; sleep only while it has none."""
        try:
            with self.pipeline.stream():
                while self._advance(lane):
                    pass
        finally:  # without one lane the others make no picture either
            with self._monitor:
                self._stopping = True
                self._monitor.notify_all()

    def _advance(self, lane: Lane) -> bool:
        """Run the next step or preview of a lane, of which nothing is held after it; False means stop."""
        running = self._begin(lane)
        if isinstance(running, Moment):
            self._preview(running)
        elif running is not None:
            if running.step.kind is not StepKind.DROP:
                self._run(running)
            self._end(running)
        return running is not None

    def _begin(self, lane: Lane) -> "_Running | Moment | None":
        """Wait for the next step or preview of a lane; None means stop."""
        makes_previews = lane is self.lanes[-1]
        with self._monitor:
            while not self._stopping:
                if makes_previews and (moment := self._previews.take(self._works)) is not None:
                    return moment
                now = self.clock()
                if (step := self._batcher.plan(now, lane)) is not None:
                    return _Running(step, [self._works[entry.id] for entry in step.entries], lane, now)
                self._monitor.wait()
        return None

    def _run(self, running: "_Running") -> None:
        """Run a step on the device, and account for it."""
        step, works = running.step, running.works
        lane = self.lanes.index(running.lane)
        self.send(Stepping(lane=lane, ids=[entry.id for entry in step.entries]))
        with self._monitor:
            self._meter.begin(lane, self.clock())
        smooth = self._stages.run(step.kind, works)
        shapes = tuple(entry.shape for entry in step.entries)
        with self._monitor:
            now = self.clock()  # asked here, so that no lane tells the meter of a time before another's
            device_s = self._meter.end(lane, now)
            efficiency = self.costs.efficiency(shapes) if step.kind is StepKind.DENOISE else None
            parts = self.costs.parts(step.kind, shapes)
            if smooth:
                self.costs.refine(Timed(step.kind, shapes, device_s))
        for work, part in zip(works, parts, strict=True):
            work.record(step.kind, seconds=now - running.began_s, device_s=device_s * part)
        self.send(
            Stepped(
                kind=step.kind,
                lane=lane,
                images=len(works),
                tokens=step.tokens,
                seconds=device_s,
                efficiency=efficiency,
            )
        )
        if step.kind is StepKind.ENCODE:
            self._report_cache()

    def _end(self, running: "_Running") -> None:
        """Take a step out of the plan, and answer the pictures that it was the last one of."""
        failed = {work.request.id for work in running.works if work.failure is not None}
        with self._monitor:
            leaving = self._batcher.complete(running.step, failed=failed)
            left = [self._works.pop(entry.id) for entry in leaving]
            left += [work for work in running.works if work.forgotten]
            if running.step.kind is StepKind.DENOISE:
                for work in running.works:
                    self._previews.note(work)
            self._monitor.notify_all()
        for work in left:
            self._leave(work)

    def _preview(self, moment: Moment) -> None:
        """Make a preview; one that fails is missed by nobody but the log."""
        try:
            pixels = self.previewer.preview(moment.sample)
        except torch.AcceleratorError:
            raise
        except Exception:
            log.exception("preview_failed", image=moment.request.id)
        else:
            self._encoders.submit(self._send_preview, moment, pixels)

    def _send_preview(self, moment: Moment, pixels: Pixels) -> None:
        with self._monitor:
            if moment.request.id not in self._works or moment.is_late:
                return
        try:
            preview = encode_preview(pixels, moment, self._provenance(moment.request))
        except Exception:  # nobody looks at this thread's result
            log.exception("preview_failed", image=moment.request.id)
        else:
            self.send(Previewed(id=moment.request.id, preview=preview))

    def _leave(self, work: Work) -> None:
        """Answer a picture that left the plan, a finished one from an encoder thread."""
        if work.forgotten:
            self._fail(work, Cancelled("forgotten"))
        elif work.failure is not None:
            self._fail(work, work.failure)
        elif work.pixels is None:
            message = "the picture cannot be finished within the deadline of its request"
            self._fail(work, DeadlineExceeded(message))
        else:
            self._encoders.submit(self._finish, work, work.pixels)

    def _fail(self, work: Work, error: ServerError) -> None:
        failed = Failed(id=work.request.id, code=error.code, message=error.message, device_s=work.device_s)
        self.send(failed)

    def _finish(self, work: Work, pixels: Pixels) -> None:
        began_s = self.clock()
        request = work.request
        try:
            data = encode_image(
                blended(pixels, request),
                image_format=request.image_format,
                quality=request.quality,
                provenance=self._provenance(request),
            )
        except Exception:  # nobody looks at this thread's result, and the client waits
            log.exception("encode_failed", image=request.id)
            self._fail(work, GenerationFailed("the picture could not be encoded"))
            return
        now = self.clock()
        image = Image(
            data=data,
            content_type=content_type(request.image_format),
            width=request.width,
            height=request.height,
            seed=request.seed,
            timings=work.timings(encode_s=now - began_s, total_s=now - work.entry.arrived_s),
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
            adapters=request.adapters,
            prompt=request.prompt if request.embed_prompt else None,
            strength=None if request.source is None else request.source.strength,
        )

    def _report_cache(self) -> None:
        cache = self.pipeline.conditioning
        if (cache.hits, cache.misses) != self._reported:
            self._reported = (cache.hits, cache.misses)
            self.send(CacheReport(hits=cache.hits, misses=cache.misses, size_bytes=cache.size_bytes))


@dataclass(frozen=True, slots=True)
class _Running:
    """A step with the pictures that were in it when it began, also those that are cancelled meanwhile."""

    step: Step
    works: Sequence[Work]
    lane: Lane
    began_s: float
