"""Who works on what: the pictures that were admitted, and the workers with what each has in hand."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from server.admission import Admission, Admitted
from server.costs import StepKind
from server.errors import ServerError
from server.events import Advanced, Event, Hear, Listener, ignore, ignore_all
from server.generation import (
    URGENCY,
    Forecast,
    GenerationRequest,
    Image,
    ImageRequest,
    Preview,
    Priority,
    preview_steps,
)
from server.protocol import Cancel, Previewed, Revise, Stepped, Submit
from server.router import Load
from server.supervisor import State, Supervisor

MAX_FAILED_STARTS: Final = 5  # in a row: then nobody should wait for this worker any longer

log = structlog.get_logger(__name__)


def _ignore() -> None:
    """Nobody wants to hear of it."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told what becomes of a request on its way.

    `admitted` is called once, before any wait; `began` for each of its pictures, when a worker starts on it;
    `listen` with all events of its pictures.
    """

    admitted: Callable[[], None] = _ignore
    began: Callable[[], None] = _ignore
    listen: Listener = ignore_all


UNWATCHED: Final = Watch()


@dataclass(eq=False, slots=True)
class Pending:
    """One admitted picture, run once for all who wait for it.

    It has the priority of the most urgent of them and the deadline of the most patient: dropping it earlier
    would fail one who has time left. `deadline` and `came` are on the loop's clock; `worker` is None while it
    waits for one. `key` is None when the picture is one request's own.
    """

    image: ImageRequest
    key: str | None
    admitted: Admitted
    deadline: float | None
    came: float
    waiters: "list[Waiter]" = field(default_factory=list)
    attempts: int = 0
    suspected: bool = False  # of having killed a worker
    worker: int | None = None
    began: bool = False  # a step of it has begun
    prolonged: bool = False  # since it was handed over: the worker may have dropped it before it heard that
    steps_done: int = 0  # denoising steps, of those that run for its request
    settled: bool = False
    finished: bool = False  # settled with its picture

    @property
    def payer(self) -> str:
        """The API key that is charged for it: of who has waited longest, or of who had it begun."""
        return self.waiters[0].key if self.waiters else self.image.key

    @property
    def predicted(self) -> float:
        """When it was forecast to be done, on the loop's clock."""
        return self.came + self.admitted.forecast_s

    def left_s(self, now: float) -> float | None:
        """Return the seconds until the deadline, if there is one."""
        return None if self.deadline is None else max(0.0, self.deadline - now)

    def forecast(self, admission: Admission, *, now: float) -> Forecast:
        """Return how it stands; `now` is on the loop's clock."""
        return Forecast(position=admission.position(self.admitted), finish_s=max(0.0, self.predicted - now))

    def image_at(self, now: float) -> ImageRequest:
        """Return what to ask a worker for: the picture with the time that is left."""
        return msgspec.structs.replace(self.image, deadline_s=self.left_s(now))

    def revision_at(self, now: float) -> Revise:
        """Return what to tell a worker that has it of those who came later."""
        return Revise(id=self.image.id, priority=self.image.priority, deadline_s=self.left_s(now))

    def revise(self, priority: Priority | None, deadline: float | None) -> bool:
        """Take in that somebody else waits; returns whether a worker that has it must know."""
        urgent = min(self.image.priority, priority or Priority.NORMAL, key=URGENCY.index)
        known = self.image.priority, self.deadline
        if self.deadline is not None and (deadline is None or deadline > self.deadline):
            self.deadline, self.prolonged = deadline, True
        self.image = msgspec.structs.replace(self.image, priority=urgent)
        return known != (urgent, self.deadline)

    def begin(self) -> None:
        """Tell all who wait that a worker has started on it, once."""
        if not self.began:
            self.began = True
            for waiter in self.waiters:
                waiter.watch.began()

    def advance(self) -> None:
        """Note that a denoising step is done."""
        self.steps_done += 1
        self.tell(Advanced(self.steps_done, self.image.run_steps))

    def tell(self, event: Event) -> None:
        """Tell all who wait and listen."""
        for waiter in self.waiters:
            waiter.hear(event)

    def show(self, preview: Preview) -> None:
        """Hand a preview to those who asked for one after its step: who joined may have asked for others."""
        for waiter in self.waiters:
            if preview.step in waiter.previews:
                waiter.hear(msgspec.structs.replace(preview, index=waiter.previews.index(preview.step)))

    def settle(self, answer: Image | ServerError) -> None:
        """Give all who wait the same answer; from here on nobody joins them."""
        self.settled, self.finished = True, isinstance(answer, Image)
        for waiter in self.waiters:
            waiter.settle(answer)


@dataclass(eq=False, slots=True)
class Waiter:
    """One request's wait for one picture; `pending` is None for a picture that was there already."""

    request_id: str
    key: str  # the name of the API key that it came with
    answer: "asyncio.Future[Image]"
    watch: Watch
    previews: tuple[int, ...] = ()  # after which steps it asked for one
    pending: Pending | None = None
    joined: bool = False  # the picture was being made for another request
    hear: Hear = ignore

    def settle(self, answer: Image | ServerError) -> None:
        if self.answer.done():
            return
        if isinstance(answer, ServerError):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)
            self.hear(answer)


@dataclass(frozen=True, slots=True)
class RunningStep:
    """A step that has begun: its pictures, and since when, on the loop's clock."""

    ids: list[str]
    began: float


@dataclass(eq=False, slots=True)
class Worker:
    """A supervised process and the pictures that it has in hand.

    `device` is what was asked for until the worker says which one it is.
    """

    supervisor: Supervisor
    device: str
    in_hand: dict[str, Pending] = field(default_factory=dict)
    owed: dict[str, Pending] = field(default_factory=dict)  # cancelled, and not yet said to be forgotten
    stepping: dict[int, RunningStep] = field(default_factory=dict)  # by lane
    alone: bool = False  # it is running a suspect, and nothing else may join
    quiet_since: float = 0.0  # when it last said something, or got something to do after having nothing

    def take(self, pending: Pending, now: float) -> None:
        """Have it made."""
        pending.attempts += 1
        pending.steps_done = 0
        pending.prolonged = False
        if not self.owes_an_answer():
            self.quiet_since = now
        self.in_hand[pending.image.id] = pending
        self.supervisor.send(Submit(image=pending.image_at(now)))

    def previewed(self, previewed: Previewed) -> None:
        """Hand on a preview, unless nobody wants its picture any more."""
        if pending := self.in_hand.get(previewed.id):
            pending.show(previewed.preview)

    def forget(self, pending: Pending) -> None:
        """Have a picture forgotten, if the worker has it; what it took is still to be told."""
        image_id = pending.image.id
        if self.in_hand.pop(image_id, None) is not None:
            self.owed[image_id] = pending
            self.supervisor.send(Cancel(id=image_id))
        self.alone = self.alone and bool(self.in_hand)

    def give_back(self, image_id: str) -> Pending | None:
        """Return the picture of this id, which the worker is done with, whether somebody wants it or not."""
        pending = self.in_hand.pop(image_id, None) or self.owed.pop(image_id, None)
        self.alone = self.alone and bool(self.in_hand)
        return pending

    def lose(self) -> list[Pending]:
        """Forget all that the process knew, and return the pictures that it had in hand."""
        lost = list(self.in_hand.values())
        self.in_hand.clear()
        self.owed.clear()
        self.stepping.clear()
        self.alone = False
        return lost

    def owes_an_answer(self) -> bool:
        """Whether silence is suspicious."""
        return bool(self.in_hand or self.owed)

    def hangs(self, now: float, *, hang_s: float) -> bool:
        """Whether a step has been running for longer than that, or it has work and said nothing for so long.

        While one lane hangs another may go on, and so does whoever takes in messages: neither is a sign that
        the step will end.
        """
        if any(now - step.began > hang_s for step in self.stepping.values()):
            return True
        return self.owes_an_answer() and now - self.quiet_since > hang_s

    def begin_step(self, lane: int, ids: list[str], now: float) -> None:
        """Note which pictures are in the step that begins on a lane."""
        self.stepping[lane] = RunningStep(ids, now)
        for image_id in ids:
            if pending := self.in_hand.get(image_id):
                pending.begin()

    def end_step(self, stepped: Stepped) -> list[Pending]:
        """Return the pictures of the step that is over on a lane, but for those nobody wants any more."""
        step = self.stepping.pop(stepped.lane, None)
        ids = () if step is None else step.ids
        ended = [self.in_hand[image_id] for image_id in ids if image_id in self.in_hand]
        for pending in ended:
            if stepped.kind is StepKind.DENOISE:
                pending.advance()
        return ended

    def in_a_step(self) -> set[str]:
        """Return the ids of the pictures whose step has begun and is not over."""
        return {image_id for step in self.stepping.values() for image_id in step.ids}

    @property
    def backlog_s(self) -> float:
        """Device-seconds of what it has in hand, by its table of costs."""
        return sum(pending.admitted.left_s for pending in self.in_hand.values())

    @property
    def sizes(self) -> frozenset[tuple[int, int]]:
        return frozenset((pending.image.width, pending.image.height) for pending in self.in_hand.values())

    def load(self, index: int) -> Load:
        return Load(worker=index, backlog_s=self.backlog_s, sizes=self.sizes)


def workers_ready(workers: Sequence[Worker]) -> int:
    """Count those that take pictures."""
    return sum(worker.supervisor.state is State.READY for worker in workers)


def workers_hoped_for(workers: Sequence[Worker]) -> int:
    """Count those that take pictures, or will."""
    return sum(not _is_hopeless(worker.supervisor) for worker in workers)


def refusal_of(workers: Sequence[Worker]) -> str:
    """Return why none of these workers will ever be ready, empty while one may be."""
    if workers_hoped_for(workers):
        return ""
    died = f"the worker died {MAX_FAILED_STARTS} times while it was starting; the log above has the reason"
    return next((worker.supervisor.refusal for worker in workers if worker.supervisor.refusal), died)


async def end_hanging(workers: Sequence[Worker], *, hang_s: float) -> None:
    """Kill workers that hang; their death is then handled like any other."""
    while True:
        await asyncio.sleep(hang_s / 4)
        now = asyncio.get_running_loop().time()
        for index, worker in enumerate(workers):
            if worker.hangs(now, hang_s=hang_s):
                images = sorted({*worker.in_hand, *worker.owed, *worker.in_a_step()})
                log.error("worker_hangs", worker=index, images=images)
                worker.supervisor.kill()


@dataclass(frozen=True, slots=True)
class Progress:
    """Denoising steps of the pictures of one request that are not finished: how many are done, of how many.

    `pictures` are still being made or waiting.
    """

    pictures: int
    steps_done: int
    steps: int


def _is_hopeless(supervisor: Supervisor) -> bool:
    gone = supervisor.state in (State.REFUSED, State.STOPPED)
    return gone or (supervisor.state is State.LOST and supervisor.failures >= MAX_FAILED_STARTS)


def wait_for(picture: Image | Pending, request: GenerationRequest, watch: Watch) -> Waiter:
    """Let a request wait for a picture that is there already, or is being made."""
    previews = preview_steps(request.run_steps, request.previews)
    waiter = Waiter(request.id, request.key, asyncio.get_running_loop().create_future(), watch, previews)
    if isinstance(picture, Image):
        waiter.settle(picture)
    else:
        waiter.pending, waiter.joined = picture, bool(picture.waiters)
        picture.waiters.append(waiter)
        if picture.began:
            watch.began()
    return waiter


def leave(waiters: Iterable[Waiter]) -> list[Pending]:
    """End these waits, answered or not; return the pictures that nobody waits for any more."""
    abandoned: list[Pending] = []
    for waiter in waiters:
        if not waiter.answer.done():
            waiter.answer.cancel()
        elif not waiter.answer.cancelled():
            waiter.answer.exception()  # seen: a sibling may have failed first
        if waiter.pending is not None:
            waiter.pending.waiters.remove(waiter)
            if not waiter.pending.waiters:
                abandoned.append(waiter.pending)
    return abandoned


def progress_of(pendings: Iterable[Pending], request_id: str) -> Progress:
    """Return how far those of `pendings` are that this request waits for."""
    awaited = [
        pending
        for pending in pendings
        if not pending.settled and any(waiter.request_id == request_id for waiter in pending.waiters)
    ]
    return Progress(
        pictures=len(awaited),
        steps_done=sum(pending.steps_done for pending in awaited),
        steps=sum(pending.image.run_steps for pending in awaited),
    )


def waiters_of(pendings: Iterable[Pending]) -> list[Waiter]:
    return [waiter for pending in pendings for waiter in pending.waiters]
