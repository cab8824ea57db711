"""From a request to its pictures: admission, routing, workers, and what happens when one of them dies.

The HTTP dialects call `submit`; nothing here knows HTTP. Every request is answered once: with its pictures,
or with one error of `server.errors`.
"""

import asyncio
import itertools
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from server.admission import Admission, auto_steps
from server.costs import CostTable
from server.errors import Cancelled, DeadlineExceeded, NotReady, ServerError, WorkerLost, from_code
from server.generation import GenerationRequest, GenerationResult, Image, ModelInfo
from server.metrics import Metrics
from server.protocol import CacheReport, Cancel, Done, Failed, Ready, Start, Stepped, Submit, ToFront
from server.roster import MAX_FAILED_STARTS, Pending, Worker, fail, is_finished, is_hopeless
from server.router import choose
from server.supervisor import WORKER_COMMAND, State, Supervisor

MAX_ATTEMPTS: Final = 2
RETRY_SOON_S: Final = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class EngineStats:
    backlog_s: float
    in_hand: int
    waiting: int
    workers: int
    workers_ready: int


class Engine:
    """Serves requests on one worker per entry of `starts`.

    A picture whose worker died is run once more. Since any picture that the dead worker had in hand may be
    what killed it, these suspects run one at a time and alone, so that one which kills again takes no
    neighbour with it; until they are through, nothing else is handed out. A worker that has work and says
    nothing for `hang_s` is taken for dead.
    """

    def __init__(
        self,
        starts: Sequence[Start],
        *,
        metrics: Metrics,
        max_backlog_s: float,
        auto_steps_backlog_s: float,
        hang_s: float,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._metrics = metrics
        self._admission = Admission(max_backlog_s)
        self._auto_steps_backlog_s = auto_steps_backlog_s
        self._hang_s = hang_s
        self._watch: asyncio.Task[None] | None = None
        self._numbers = itertools.count()
        self._model: ModelInfo | None = None
        self._waiting: deque[Pending] = deque()
        self._suspects: deque[Pending] = deque()
        self._unanswered: set[Pending] = set()
        self._stopping = False
        self._changed = asyncio.Event()
        self._refused = asyncio.Event()
        self._workers = [
            Worker(
                Supervisor(
                    start,
                    on_message=self._hearer(index),
                    on_change=self._changer(index),
                    command=command,
                )
            )
            for index, start in enumerate(starts)
        ]

    async def start(self) -> None:
        """Spawn the workers; returns before they are ready."""
        for worker in self._workers:
            worker.supervisor.start()
        self._watch = asyncio.create_task(self._end_hanging_workers())

    async def wait_ready(self) -> None:
        """Wait until a worker takes requests; raises `NotReady` if none ever will."""
        while not self.ready:
            if reason := self._refusal():
                raise NotReady(reason)
            self._changed.clear()
            await self._changed.wait()

    async def wait_refused(self) -> str:
        """Wait until it is clear that no worker can load the checkpoint, and return why."""
        while not (reason := self._refusal()):
            self._refused.clear()
            await self._refused.wait()
        return reason

    @property
    def ready(self) -> bool:
        """Whether requests are welcome: a worker is ready and the server is not draining."""
        return not self._stopping and self._workers_ready() > 0

    @property
    def model(self) -> ModelInfo:
        """What is served; raises `NotReady` before the first worker has loaded it."""
        if self._model is None:
            raise NotReady("the model is still being loaded", retry_after_s=RETRY_SOON_S)
        return self._model

    def steps_for_auto(self) -> int:
        """Return the steps that `num_inference_steps: "auto"` gets right now."""
        backlog_s = self._admission.backlog_s / max(1, self._workers_hoped_for())
        return auto_steps(backlog_s, step_down_s=self._auto_steps_backlog_s)

    def stats(self) -> EngineStats:
        return EngineStats(
            backlog_s=self._admission.backlog_s,
            in_hand=sum(len(worker.in_hand) for worker in self._workers),
            waiting=len(self._waiting) + len(self._suspects),
            workers=len(self._workers),
            workers_ready=self._workers_ready(),
        )

    async def submit(self, request: GenerationRequest) -> GenerationResult:
        """Make the pictures of `request`; cancelling this call cancels their work.

        Raises `Overloaded`, `NotReady`, `DeadlineExceeded`, `WorkerLost`, `GenerationFailed` or `Cancelled`.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        pendings = self._admit(request, now=began)
        try:
            self._waiting.extend(pendings)
            self._dispatch()
            async with asyncio.timeout(request.deadline_s):
                images = await asyncio.gather(*(pending.answer for pending in pendings))
        except TimeoutError:
            message = f"the request was not finished within its deadline of {request.deadline_s:g} s"
            raise DeadlineExceeded(message) from None
        finally:
            for pending in pendings:
                self._withdraw(pending)
            self._dispatch()
        return _result(request, images, model=self.model.name, total_s=loop.time() - began)

    async def cancel(self, request_id: str) -> None:
        """End the calls of `submit` with this request id, if there are any, with `Cancelled`."""
        for pending in self._unanswered:
            if pending.request_id == request_id:
                fail(pending, Cancelled("the request was cancelled"))

    async def stop(self, drain_s: float) -> None:
        """Refuse what is new, finish what was admitted within `drain_s`, answer the rest, end the workers."""
        self._stopping = True
        self._changed.set()
        if answers := [pending.answer for pending in self._unanswered]:
            await asyncio.wait(answers, timeout=drain_s)
        for pending in list(self._unanswered):
            fail(pending, NotReady("the server is shutting down", retry_after_s=RETRY_SOON_S))
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(*(worker.supervisor.stop() for worker in self._workers))

    def _admit(self, request: GenerationRequest, *, now: float) -> list[Pending]:
        if self._stopping:
            raise NotReady("the server is shutting down", retry_after_s=RETRY_SOON_S)
        model = self.model
        workers = self._workers_hoped_for()
        if workers == 0:
            raise NotReady("no worker is running", retry_after_s=RETRY_SOON_S)
        # Clients choose request ids, so two may choose the same: the engine's own number tells them apart.
        images = msgspec.structs.replace(request, id=f"{request.id}#{next(self._numbers)}").images()
        admitted = self._admission.admit(images, model, workers=workers, deadline_s=request.deadline_s)
        self._metrics.backlog(self._admission.backlog_s)
        deadline = None if request.deadline_s is None else now + request.deadline_s
        loop = asyncio.get_running_loop()
        pendings = [
            Pending(request.id, image, each, deadline, loop.create_future())
            for image, each in zip(images, admitted, strict=True)
        ]
        self._unanswered.update(pendings)
        return pendings

    def _withdraw(self, pending: Pending) -> None:
        """Take a picture out of everything, whether it was answered or nobody wants it any more."""
        if pending not in self._unanswered:
            return
        self._unanswered.discard(pending)
        self._admission.release(pending.admitted, finished=is_finished(pending))
        self._metrics.backlog(self._admission.backlog_s)
        for queue in (self._waiting, self._suspects):
            if pending in queue:
                queue.remove(pending)
        if pending.worker is not None:
            worker = self._workers[pending.worker]
            if worker.in_hand.pop(pending.image.id, None) is not None:
                worker.owed.add(pending.image.id)
                worker.supervisor.send(Cancel(id=pending.image.id))
            worker.alone = worker.alone and bool(worker.in_hand)
        if not pending.answer.done():
            pending.answer.cancel()
        elif not pending.answer.cancelled():
            pending.answer.exception()  # seen: a sibling may have failed first

    def _dispatch(self) -> None:
        """Hand out what waits: suspects alone to idle workers first, then everything else."""
        ready = [i for i, worker in enumerate(self._workers) if worker.supervisor.state is State.READY]
        for index in ready:
            if self._suspects and not self._workers[index].in_hand:
                self._workers[index].alone = True
                self._hand_over(self._suspects.popleft(), index)
        open_to_all = [index for index in ready if not self._workers[index].alone]
        while self._waiting and open_to_all and not self._suspects:
            pending = self._waiting.popleft()
            size = (pending.image.width, pending.image.height)
            loads = [self._workers[index].load(index) for index in open_to_all]
            self._hand_over(pending, choose(loads, size=size, saved_s=pending.admitted.bill.shared_s))

    def _hand_over(self, pending: Pending, index: int) -> None:
        pending.attempts += 1
        pending.worker = index
        worker = self._workers[index]
        now = asyncio.get_running_loop().time()
        if not worker.owes_an_answer():
            worker.quiet_since = now
        worker.in_hand[pending.image.id] = pending
        left_s = None if pending.deadline is None else max(0.0, pending.deadline - now)
        worker.supervisor.send(Submit(image=msgspec.structs.replace(pending.image, deadline_s=left_s)))

    def _hearer(self, index: int) -> Callable[[ToFront], None]:
        def hear(message: ToFront) -> None:
            self._workers[index].quiet_since = asyncio.get_running_loop().time()
            match message:
                case Ready(model=model, costs=costs):
                    self._learn(index, model, costs)
                case Done(id=image_id, image=image):
                    self._settle(index, image_id, image)
                case Failed(id=image_id, code=code, message=reason):
                    self._settle(index, image_id, from_code(code, reason))
                case Stepped():
                    self._metrics.step(message)
                case CacheReport():
                    self._metrics.cache(index, message)
                case _:
                    raise AssertionError(f"the supervisor keeps {message} to itself")

        return hear

    async def _end_hanging_workers(self) -> None:
        """Kill workers that have work and stay silent; their death is then handled like any other."""
        while True:
            await asyncio.sleep(self._hang_s / 4)
            now = asyncio.get_running_loop().time()
            for index, worker in enumerate(self._workers):
                if worker.owes_an_answer() and now - worker.quiet_since > self._hang_s:
                    log.error("worker_hangs", worker=index, images=[*worker.in_hand, *worker.owed])
                    worker.supervisor.kill()

    def _settle(self, index: int, image_id: str, answer: Image | ServerError) -> None:
        """Give an answer to the picture of this very id; one that nobody waits for is dropped."""
        worker = self._workers[index]
        pending = worker.in_hand.pop(image_id, None)
        worker.owed.discard(image_id)
        worker.alone = worker.alone and bool(worker.in_hand)
        if pending is None or pending.answer.done():
            log.debug("answer_without_question", worker=index, image=image_id)
        elif isinstance(answer, ServerError):
            fail(pending, answer)
        else:
            self._admission.observe(pending.admitted, answer.timings.device_s)
            pending.answer.set_result(answer)
        self._dispatch()

    def _learn(self, index: int, model: ModelInfo, costs: CostTable) -> None:
        """Take the first worker's word for what is served; one that would make other pictures is refused."""
        served = self._model or model
        if _decides(model) != _decides(served):
            reason = f"loaded {_decides(model)} where {_decides(served)} is served"
            log.error("workers_differ", worker=index, reason=reason)
            self._workers[index].supervisor.refuse(reason)
            return
        self._model = served
        self._admission.start_from(costs)
        self._metrics.model(model)

    def _changer(self, index: int) -> Callable[[], None]:
        def change() -> None:
            worker = self._workers[index]
            match worker.supervisor.state:
                case State.LOST:
                    self._metrics.restarted()
                    self._recover(worker)
                case State.REFUSED | State.STOPPED:
                    self._recover(worker)
                case State.STARTING | State.READY:
                    pass
            self._metrics.workers(self._workers_ready())
            self._give_up_if_hopeless()
            self._dispatch()
            self._changed.set()
            self._refused.set()

        return change

    def _recover(self, worker: Worker) -> None:
        """Put what a lost worker had in hand up for its second and last attempt."""
        lost, worker.in_hand, worker.alone = list(worker.in_hand.values()), {}, False
        worker.owed.clear()
        for pending in lost:
            pending.worker = None
            if pending.attempts < MAX_ATTEMPTS:
                self._suspects.append(pending)
            else:
                fail(pending, WorkerLost("the worker died twice while making this picture", retry_after_s=1))

    def _give_up_if_hopeless(self) -> None:
        """Answer everybody who waits for a worker that is not coming back."""
        if self._workers_hoped_for():
            return
        for pending in (*self._waiting, *self._suspects):
            fail(pending, NotReady("no worker is running", retry_after_s=RETRY_SOON_S))
        self._waiting.clear()
        self._suspects.clear()

    def _refusal(self) -> str:
        """Return why no worker will ever be ready, empty while one may be or has been."""
        if self._model is not None or not all(is_hopeless(worker.supervisor) for worker in self._workers):
            return ""
        died = (
            f"the worker died {MAX_FAILED_STARTS} times while it was starting; the log above has the reason"
        )
        return next(
            (worker.supervisor.refusal for worker in self._workers if worker.supervisor.refusal), died
        )

    def _workers_ready(self) -> int:
        return sum(worker.supervisor.state is State.READY for worker in self._workers)

    def _workers_hoped_for(self) -> int:
        return sum(not is_hopeless(worker.supervisor) for worker in self._workers)


def _decides(model: ModelInfo) -> tuple[str, ...]:
    """What else than its request decides a picture: the same on every worker of a server."""
    return model.digest, model.dtype, model.numerics, model.device.partition(":")[0]


def _result(
    request: GenerationRequest, images: list[Image], *, model: str, total_s: float
) -> GenerationResult:
    """Put the answer together; its timings are those of the picture that took longest."""
    slowest = max(images, key=lambda image: image.timings.total_s).timings
    waited_s = max(
        0.0, total_s - math.fsum((slowest.text_s, slowest.denoise_s, slowest.decode_s, slowest.encode_s))
    )
    return GenerationResult(
        id=request.id,
        model=model,
        steps=request.steps,
        images=images,
        timings=msgspec.structs.replace(slowest, queue_s=waited_s, total_s=total_s),
    )
