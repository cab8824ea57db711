"""From a request to its pictures: admission, routing, workers, and what happens when one of them dies.

The HTTP dialects call `submit`; nothing here knows HTTP. Every request is answered once: with its pictures,
or with one error of `server.errors`.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec
import structlog

from server.adapters import Adapters
from server.admission import Admission, Admitted
from server.costs import CostTable
from server.errors import Cancelled, DeadlineExceeded, NotReady, ServerError, WorkerLost, from_code
from server.generation import GenerationRequest, GenerationResult, Image, ImageRequest, ModelInfo
from server.metrics import Metrics
from server.protocol import (
    AdapterLoaded,
    AdapterRefused,
    CacheReport,
    Done,
    Failed,
    Previewed,
    Ready,
    Start,
    Stepped,
    Stepping,
    ToFront,
)
from server.result import announce, result_of
from server.reuse import Gallery, Reuse, picture_key
from server.roster import (
    UNWATCHED,
    Pending,
    Progress,
    Waiter,
    Watch,
    Worker,
    end_hanging,
    leave,
    progress_of,
    refusal_of,
    wait_for,
    waiters_of,
    workers_hoped_for,
    workers_ready,
)
from server.router import choose
from server.stats import EngineStats, ServerState, by_priority, stats_of
from server.supervisor import WORKER_COMMAND, State, Supervisor

MAX_ATTEMPTS: Final = 2  # beside others: a worker that dies between steps accuses nobody in particular
RETRY_SOON_S: Final = 5.0

log = structlog.get_logger(__name__)


class Engine:
    """Serves requests on one worker per entry of `starts`.

    A picture whose worker died is run again. Any picture that was in a running step may be what killed it, so
    these suspects run once more, one at a time and alone on one worker, so that one which kills again takes
    no neighbour with it; other workers go on with everything else. A worker that has work and says nothing
    for `hang_s`, or whose step takes that long, is taken for dead.

    `charge` is told of an API key and the device-seconds that a picture took for it, finished or not.
    """

    def __init__(
        self,
        starts: Sequence[Start],
        *,
        metrics: Metrics,
        adapters: Adapters,
        max_backlog_s: float,
        default_deadline_s: float | None,
        auto_steps_backlog_s: Sequence[float],
        hang_s: float,
        image_cache_bytes: int,
        charge: Callable[[str, float], None],
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self._metrics = metrics
        self._charge = charge
        self.adapters = adapters
        self._admission = Admission(max_backlog_s, auto_steps_backlog_s)
        self._default_deadline_s = default_deadline_s
        self._hang_s = hang_s
        self._gallery = Gallery(image_cache_bytes, metrics=metrics)
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
                    on_message=partial(self._hear, index),
                    on_change=partial(self._change, index),
                    command=command,
                ),
                start.device,
            )
            for index, start in enumerate(starts)
        ]
        adapters.attach([worker.supervisor for worker in self._workers])
        metrics.watch(
            backlog_s=lambda: self._admission.backlog_s,
            waiting=lambda priority: by_priority(self._unanswered, began=False)[priority],
        )

    async def start(self) -> None:
        """Spawn the workers; returns before they are ready."""
        for worker in self._workers:
            worker.supervisor.start()
        self._watch = asyncio.create_task(end_hanging(self._workers, hang_s=self._hang_s))

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
        return not self._stopping and workers_ready(self._workers) > 0

    @property
    def model(self) -> ModelInfo:
        """What is served; raises `NotReady` before the first worker has loaded it."""
        if self._model is None:
            raise NotReady("the model is still being loaded", retry_after_s=RETRY_SOON_S)
        if self._model.adapters != self.adapters.served:
            self._model = msgspec.structs.replace(self._model, adapters=self.adapters.served)
        return self._model

    def steps_for_auto(self) -> int:
        """Choose the steps of a request with `num_inference_steps: "auto"`."""
        steps = self._admission.auto_steps(self.model, workers=workers_hoped_for(self._workers))
        self._metrics.auto_steps(steps)
        return steps

    def stats(self) -> EngineStats:
        """Return what is going on now; the cost grows with the pictures in hand."""
        state = ServerState.READY if self.ready else ServerState.LOADING
        state = ServerState.DRAINING if self._stopping else state
        return stats_of(self._workers, self._unanswered, self._admission, state=state, model=self._model)

    async def submit(
        self, request: GenerationRequest, reuse: Reuse = Reuse.NEVER, watch: Watch = UNWATCHED
    ) -> GenerationResult:
        """Make or find the pictures of `request`; cancelling this call cancels work that nobody else awaits.

        A request without a deadline has the server's. Raises `Overloaded`, `NotReady`, `DeadlineExceeded`,
        `WorkerLost`, `GenerationFailed`, `Cancelled`, or `InvalidRequest` where an adapter is gone.
        """
        if request.deadline_s is None:
            request = msgspec.structs.replace(request, deadline_s=self._default_deadline_s)
        with self._metrics.deadline(request.deadline_s):
            return await self._answer(request, reuse, watch)

    async def cancel(self, request_id: str, *, key: str = "") -> None:
        """End the calls of `submit` with this id, from the API key of this name, with `Cancelled`."""
        for waiter in waiters_of(self._unanswered):
            if (waiter.key, waiter.request_id) == (key, request_id):
                waiter.settle(Cancelled("the request was cancelled"))

    def progress(self, request_id: str) -> Progress:
        """Return how far the unfinished pictures of the calls of `submit` with this request id are."""
        return progress_of(self._unanswered, request_id)

    async def stop(self, drain_s: float) -> None:
        """Refuse what is new, finish what was admitted within `drain_s`, answer the rest, end the workers."""
        self._stopping = True
        self._changed.set()
        if answers := [waiter.answer for waiter in waiters_of(self._unanswered)]:
            await asyncio.wait(answers, timeout=drain_s)
        for pending in list(self._unanswered):
            pending.settle(NotReady("the server is shutting down", retry_after_s=RETRY_SOON_S))
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(*(worker.supervisor.stop() for worker in self._workers))

    async def _answer(self, request: GenerationRequest, reuse: Reuse, watch: Watch) -> GenerationResult:
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiters = self._admit(request, reuse, watch, now=began)
        try:
            watch.admitted()
            forecast = announce(waiters, self._admission, now=began)
            self._dispatch()
            async with asyncio.timeout(request.deadline_s):
                images = await asyncio.gather(*(waiter.answer for waiter in waiters))
        except TimeoutError:
            message = f"the request was not finished within its deadline of {request.deadline_s:g} s"
            raise DeadlineExceeded(message) from None
        finally:
            for abandoned in leave(waiters):
                self._withdraw(abandoned)
            self._dispatch()
        total_s = loop.time() - began
        return result_of(request, images, waiters, forecast=forecast, model=self.model.name, total_s=total_s)

    def _admit(self, request: GenerationRequest, reuse: Reuse, watch: Watch, *, now: float) -> list[Waiter]:
        """Let the request wait for its pictures; those that need no run of their own are never refused."""
        if self._stopping:
            raise NotReady("the server is shutting down", retry_after_s=RETRY_SOON_S)
        model = self.model
        deadline = None if request.deadline_s is None else now + request.deadline_s
        request = self.adapters.identified(request)
        # Clients choose request ids, so two may choose the same: the engine's own number tells them apart.
        images = msgspec.structs.replace(request, id=f"{request.id}#{next(self._numbers)}").images()
        keys = [None if reuse is Reuse.NEVER else picture_key(image, model) for image in images]
        found = [self._gallery.find(key) if key and reuse is Reuse.ALLOWED else None for key in keys]
        lacking = [image for image, picture in zip(images, found, strict=True) if picture is None]
        admitted = iter(self._let_in(lacking, model, deadline_s=request.deadline_s) if lacking else ())
        pictures = [
            picture or Pending(image, key, next(admitted), deadline, came=now)
            for image, key, picture in zip(images, keys, found, strict=True)
        ]
        runs = [each for each in pictures if isinstance(each, Pending) and not each.waiters]
        self._unanswered.update(runs)
        self._waiting.extend(runs)
        self._gallery.began(runs)
        return [self._wait_for(picture, request, watch, deadline=deadline) for picture in pictures]

    def _let_in(
        self, images: list[ImageRequest], model: ModelInfo, *, deadline_s: float | None
    ) -> list[Admitted]:
        workers = workers_hoped_for(self._workers)
        if workers == 0:
            raise NotReady("no worker is running", retry_after_s=RETRY_SOON_S)
        return self._admission.admit(images, model, workers=workers, deadline_s=deadline_s)

    def _wait_for(
        self, picture: Image | Pending, request: GenerationRequest, watch: Watch, *, deadline: float | None
    ) -> Waiter:
        """Let a request wait; a run that somebody joins may become more urgent, or be given more time."""
        waiter = wait_for(picture, request, watch)
        run = waiter.pending
        if run is not None and run.revise(request.priority, deadline) and run.worker is not None:
            now = asyncio.get_running_loop().time()
            self._workers[run.worker].supervisor.send(run.revision_at(now))
        return waiter

    def _withdraw(self, pending: Pending) -> None:
        """Take a picture out of everything, whether it was answered or nobody wants it any more."""
        self._unanswered.discard(pending)
        self._gallery.ended(pending)
        self._admission.release(pending.admitted, finished=pending.finished)
        for queue in (self._waiting, self._suspects):
            if pending in queue:
                queue.remove(pending)
        if pending.worker is not None:
            self._workers[pending.worker].forget(pending)

    def _dispatch(self) -> None:
        """Hand out what waits: suspects alone to one worker, everything else to the others."""
        ready = [i for i, worker in enumerate(self._workers) if worker.supervisor.state is State.READY]
        open_to_all = [index for index in ready if not self._workers[index].alone]
        if self._suspects and len(open_to_all) == len(ready) > 0:
            ward = min(ready, key=lambda index: len(self._workers[index].in_hand))
            open_to_all.remove(ward)
            if not self._workers[ward].in_hand:
                self._workers[ward].alone = True
                self._hand_over(self._suspects.popleft(), ward)
        while self._waiting and open_to_all:
            pending = self._waiting.popleft()
            size = (pending.image.width, pending.image.height)
            loads = [self._workers[index].load(index) for index in open_to_all]
            self._hand_over(pending, choose(loads, size=size, saved_s=pending.admitted.bill.shared_s))

    def _hand_over(self, pending: Pending, index: int) -> None:
        pending.worker = index
        self._workers[index].take(pending, asyncio.get_running_loop().time())

    def _hear(self, index: int, message: ToFront) -> None:
        self._workers[index].quiet_since = now = asyncio.get_running_loop().time()
        match message:
            case Ready(model=model, costs=costs):
                self._learn(index, model, costs)
            case Done(id=image_id, image=image):
                self._settle(index, image_id, image, device_s=image.timings.device_s)
            case Failed(id=image_id, code=code, message=reason, device_s=device_s):
                self._settle(index, image_id, from_code(code, reason), device_s=device_s)
            case Stepping(lane=lane, ids=ids):
                self._workers[index].begin_step(lane, ids, now)
            case Stepped():
                self._end_step(index, message)
            case Previewed():
                self._workers[index].previewed(message)
            case AdapterLoaded() | AdapterRefused():
                self.adapters.hear(index, message)
            case CacheReport():
                self._metrics.cache(index, message)
            case _:
                raise AssertionError(f"the supervisor keeps {message} to itself")

    def _end_step(self, index: int, stepped: Stepped) -> None:
        self._metrics.step(stepped)
        for pending in self._workers[index].end_step(stepped):
            self._admission.progress(pending.admitted, stepped.kind)

    def _settle(self, index: int, image_id: str, answer: Image | ServerError, *, device_s: float) -> None:
        """Charge what the picture of this very id took, and answer it; if nobody waits that is dropped."""
        pending = self._workers[index].give_back(image_id)
        if pending is not None:
            self._charge(pending.payer, device_s)
        if pending is None or pending.settled or not pending.waiters:
            log.debug("answer_without_question", worker=index, image=image_id)
        elif isinstance(answer, DeadlineExceeded) and pending.prolonged:
            # It was dropped before the worker heard that somebody has more time.
            pending.worker, pending.attempts, pending.began = None, pending.attempts - 1, False
            self._admission.restart(pending.admitted)
            self._waiting.appendleft(pending)
        else:
            if isinstance(answer, Image):
                self._admission.observe(pending.admitted, answer.timings.device_s)
                self._metrics.image_made()
                self._gallery.finished(pending, answer)
            pending.settle(answer)
        self._dispatch()

    def _learn(self, index: int, model: ModelInfo, costs: CostTable) -> None:
        """Take the first worker's word for what is served; one that would make other pictures is refused."""
        served = self._model or model
        if model.decides != served.decides:
            reason = f"loaded {model.decides} where {served.decides} is served"
            log.error("workers_differ", worker=index, reason=reason)
            self._workers[index].supervisor.refuse(reason)
            return
        self._model = served
        self._workers[index].device = model.device
        self.adapters.ready(index, model.adapters)
        self._admission.start_from(costs)
        self._metrics.model(model)

    def _change(self, index: int) -> None:
        worker = self._workers[index]
        if worker.supervisor.state is not State.READY:
            self.adapters.lost(index)
        if worker.supervisor.state is State.LOST:
            self._metrics.restarted()
        if worker.supervisor.state in (State.LOST, State.REFUSED, State.STOPPED):
            self._recover(worker)
        self._metrics.workers(workers_ready(self._workers))
        self._give_up_if_hopeless()
        self._dispatch()
        self._changed.set()
        self._refused.set()

    def _recover(self, worker: Worker) -> None:
        """Put what a lost worker had in hand up for another attempt; the last one of a suspect was alone."""
        stepping = worker.in_a_step()
        for pending in reversed(worker.lose()):
            pending.worker, pending.began = None, False
            self._admission.restart(pending.admitted)
            if pending.suspected:
                pending.settle(WorkerLost("the worker died twice while making this picture", retry_after_s=1))
            elif pending.image.id in stepping or pending.attempts >= MAX_ATTEMPTS:
                pending.suspected = True
                self._suspects.appendleft(pending)
            else:
                self._waiting.appendleft(pending)

    def _give_up_if_hopeless(self) -> None:
        """Answer everybody who waits for a worker that is not coming back."""
        if workers_hoped_for(self._workers):
            return
        for pending in (*self._waiting, *self._suspects):
            pending.settle(NotReady("no worker is running", retry_after_s=RETRY_SOON_S))
        self._waiting.clear()
        self._suspects.clear()

    def _refusal(self) -> str:
        """Return why no worker will ever be ready, empty while one may be or has been."""
        return "" if self._model is not None else refusal_of(self._workers)
