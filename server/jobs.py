"""Asynchronous requests that survive: accepted means stored, and what is stored is finished or run again.

The dialects with jobs call this (Replicate, fal, Cog); nothing here knows HTTP. A job is let in by the same
door as every other request, then stored, and only then accepted. What a process leaves unfinished, whether
it was stopped or killed, the next one on the same data directory runs again with the seed that was stored.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from typing import Any, Final

import msgspec
import structlog

from server.engine import Engine
from server.errors import Cancelled, NotFound, NotReady, Overloaded, ServerError, StorageUnavailable
from server.events import Listener, ignore_all
from server.expiry import Expiry
from server.generation import GenerationResult
from server.job import Job, JobError, JobKey, JobState, StoredImage
from server.job_store import JobStore
from server.metrics import Metrics
from server.picture_files import PictureFiles
from server.quotas import Quotas
from server.reuse import Reuse
from server.roster import Watch
from server.source_files import SourceFiles
from server.webhooks import Webhooks, deliveries_of

AGAIN_S: Final = 5.0  # for what cannot be had now: room, a worker, the disk

log = structlog.get_logger(__name__)


class _Live:
    """A job that is not finished. `job` is as it is stored; `changed` is set and replaced when it moves."""

    def __init__(self, job: Job, listen: Listener = ignore_all) -> None:
        self.job = job
        self.listen = listen
        self.changed = asyncio.Event()
        self.admitted = asyncio.Event()
        self.stored = asyncio.Event()
        self.parked = False  # nothing takes it at the moment: there is no point in waiting
        self.ending = False  # its outcome is being stored
        self.moving = asyncio.Lock()
        self.counted = ExitStack()
        self.accepting: asyncio.Task[Job] | None = None
        self.running: asyncio.Task[None] | None = None
        self.beginning: asyncio.Task[None] | None = None

    def tell(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Jobs:
    """Runs jobs on `engine`. `clock` is Unix time.

    At most `max_unfinished` are in hand. The pause is a class attribute, so that a test can have a short one.
    """

    again_s = AGAIN_S

    def __init__(
        self,
        engine: Engine,
        store: JobStore,
        files: PictureFiles,
        sources: SourceFiles,
        webhooks: Webhooks,
        expiry: Expiry,
        *,
        metrics: Metrics,
        quotas: Quotas,
        max_unfinished: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._store = store
        self._files = files
        self._sources = sources
        self.webhooks = webhooks
        self._metrics = metrics
        self._quotas = quotas
        self._expiry = expiry
        self._max_unfinished = max_unfinished
        self._clock = clock
        self._live: dict[JobKey, _Live] = {}

    async def start(self) -> None:
        """Take up what an earlier process left unfinished; returns before any of it runs."""
        unfinished = await self._store.run(self._store.unfinished)
        await self._sources.start(unfinished)
        for job in unfinished:
            live = self._live[job.key] = _Live(job)
            live.admitted.set()
            live.stored.set()
            if job.key.owner:
                self._quotas.enter_again(job.key.owner, self._clock())
                live.counted.callback(self._quotas.leave, job.key.owner)
            live.running = asyncio.create_task(self._run(live))
        if self._live:
            log.info("jobs_taken_up", jobs=len(self._live))
        self._metrics.jobs_unfinished(len(self._live))
        await self.webhooks.start()
        self._expiry.start()

    async def stop(self) -> None:
        """Leave what is unfinished to the next process; the engine has stopped before."""
        if ending := [live.running for live in self._live.values() if live.running and live.ending]:
            await asyncio.wait(ending, timeout=self.again_s)
        tasks = (task for live in self._live.values() for task in (live.running, live.beginning))
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._expiry.stop()
        await self.webhooks.stop()
        self._store.close()

    async def submit(
        self,
        job: Job,
        counted: AbstractContextManager[None] | None = None,
        listen: Listener = ignore_all,
    ) -> Job:
        """Admit and store a job; it is accepted when this returns. One whose key is known is not run again.

        `listen` hears of its pictures while this process makes them. `counted` lasts as long as the job is
        unfinished: it counts against what its owner may have under way.
        Raises what that raises when it is entered, `Overloaded`, `NotReady` or `StorageUnavailable`: then
        nothing is kept. While the model is being loaded there is no backlog yet, and jobs are taken in up to
        the bound on unfinished ones.
        """
        live = self._live.get(job.key)
        if live is None:
            if len(self._live) >= self._max_unfinished:
                message = f"{len(self._live)} jobs are unfinished, the limit is {self._max_unfinished}"
                raise Overloaded(message, retry_after_s=self.again_s)
            request = msgspec.structs.replace(job.request, id=job.key.id)
            live = _Live(msgspec.structs.replace(job, request=request, created_s=self._clock()), listen)
            live.counted.enter_context(counted or nullcontext())
            self._live[job.key] = live
            live.accepting = asyncio.create_task(self._accept(live))
        return live.job if live.accepting is None else await asyncio.shield(live.accepting)

    async def find(self, key: JobKey) -> Job | None:
        """Return the job of this key; somebody else's is none."""
        live = self._live.get(key)
        if live is not None and live.stored.is_set():
            return live.job
        return await self._store.run(self._store.find, key)

    async def get(self, key: JobKey) -> Job:
        """Return the job of this key; raises `NotFound`."""
        job = await self.find(key)
        if job is None:
            raise NotFound("there is no such job; it may have expired", field="id")
        return job

    async def wait(self, key: JobKey, timeout_s: float) -> Job:
        """Return the job when it is finished, or as far as it is after `timeout_s`; raises `NotFound`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                async for job in self.changes(key):
                    if job.state.final:
                        return job
        return await self.get(key)

    async def changes(self, key: JobKey) -> AsyncIterator[Job]:
        """Yield the job as it is, and again whenever it has moved, to its end. Raises `NotFound`.

        Ends early when nothing takes the job at the moment, as when the server shuts down.
        """
        live = self._live.get(key)
        if live is None:
            yield await self.get(key)
            return
        while True:
            changed, job = live.changed, live.job
            if live.stored.is_set():
                yield job
            if job.state.final or live.parked:
                return
            await changed.wait()

    async def newest(
        self,
        *,
        dialect: str,
        owner: str,
        limit: int,
        before: int | None = None,
        created_after_s: float = float("-inf"),
        created_before_s: float = float("inf"),
    ) -> list[tuple[int, Job]]:
        """Return an owner's newest jobs, each with its number: the cursor for what is `before` it."""
        return await self._store.run(
            self._store.newest,
            dialect=dialect,
            owner=owner,
            limit=limit,
            before=before,
            created_after_s=created_after_s,
            created_before_s=created_before_s,
        )

    async def cancel(self, key: JobKey) -> Job:
        """End a job and its work, and return it; one that is finished stays as it is. Raises `NotFound`."""
        live = self._live.get(key)
        if live is None:
            return await self.get(key)
        if live.accepting is not None:
            await asyncio.shield(live.accepting)
        ended = await self._end(live, state=JobState.CANCELED)
        if ended and live.running is not None and not live.ending:  # what is being kept is dropped there
            live.running.cancel()
        return live.job

    def position(self, key: JobKey) -> int:
        """Return how many jobs, of anybody, were there before this one and still wait; 0 once it runs."""
        before = 0
        for live in self._live.values():  # in the order in which they came
            if live.job.key == key:
                return before if live.job.state is JobState.STARTING else 0
            before += live.job.state is JobState.STARTING
        return 0

    async def _accept(self, live: _Live) -> Job:
        """Admit, then store: what is refused costs no write, what is accepted is on the disk."""
        running = live.running = asyncio.create_task(self._run(live))
        admitted = asyncio.create_task(live.admitted.wait())
        try:
            await asyncio.wait((running, admitted), return_when=asyncio.FIRST_COMPLETED)
            if not live.admitted.is_set():
                running.result()  # raises why it was not let in
            live.job = await self._sources.keep(live.job)
            added = await self._store.run(self._store.add, live.job)
        except BaseException:
            self._forget(live)
            raise
        finally:
            admitted.cancel()
        if not added:
            self._forget(live)
            return await self.get(live.job.key)
        live.accepting = None
        live.stored.set()
        live.tell()
        self._metrics.jobs_unfinished(len(self._live))
        return live.job

    def _forget(self, live: _Live) -> None:
        """Take back what was not accepted."""
        for task in (live.running, live.beginning):
            if task is not None:
                task.cancel()
        self._live.pop(live.job.key, None)
        self._sources.drop(live.job)
        live.counted.close()
        live.parked = True
        live.tell()

    async def _run(self, live: _Live) -> None:
        """Take a job to its end, whatever that is; before it is admitted a refusal is the client's."""
        change: dict[str, Any] = {}
        result = None
        try:
            async with asyncio.timeout(self._left_s(live.job)):
                result = await self._make(live)
            change["state"] = JobState.SUCCEEDED
        except (Cancelled, TimeoutError):
            change["state"] = JobState.CANCELED
        except ServerError as error:
            if not live.admitted.is_set():
                raise
            change |= {"state": JobState.FAILED, "error": JobError(code=error.code, message=error.message)}
        except Exception:  # a fault of ours; whoever waits for the job hears that it ended
            log.exception("job_failed", job=live.job.key.id)
            fault = JobError(code=ServerError.code, message="the server failed on this job")
            change |= {"state": JobState.FAILED, "error": fault}
        await live.stored.wait()
        live.ending = True
        while not await self._try_to_end(live, change, result):
            await asyncio.sleep(self.again_s)

    async def _make(self, live: _Live) -> GenerationResult:
        """Run the request; what was accepted is never refused again, it waits until there is room."""
        reuse = Reuse.ALLOWED if live.job.seeded else Reuse.NEVER

        def began() -> None:
            live.beginning = live.beginning or asyncio.create_task(self._begin(live))

        watch = Watch(admitted=live.admitted.set, began=began, listen=live.listen)
        while True:
            try:
                if not self._model_is_known():
                    live.admitted.set()
                    await self._engine.wait_ready()
                return await self._ask(live.job, reuse, watch)
            except (Overloaded, NotReady) as refusal:
                if not live.admitted.is_set():
                    raise
                live.parked = isinstance(refusal, NotReady)
                pause_s = refusal.retry_after_s or self.again_s
            live.tell()
            await asyncio.sleep(pause_s)  # the refusal is gone, which held 12 MB: many jobs wait like this
            live.parked = False

    async def _ask(self, job: Job, reuse: Reuse, watch: Watch) -> GenerationResult:
        request = await self._sources.request_of(job)
        return await self._engine.submit(request.fitted(self._engine.model), reuse, watch)

    async def _begin(self, live: _Live) -> None:
        with suppress(StorageUnavailable):  # this is news and no answer: the end will be stored
            await self._move(live, state=JobState.PROCESSING, started_s=self._clock())

    async def _try_to_end(self, live: _Live, change: dict[str, Any], result: GenerationResult | None) -> bool:
        """Store how a job ended, its pictures before its state; False where the disk does not take it now."""
        images: tuple[StoredImage, ...] = ()
        try:
            if result is not None and not live.job.state.final:
                if live.job.state is JobState.STARTING:
                    await self._begin(live)  # nothing had to be made for it
                images = await asyncio.to_thread(self._files.keep, result.images)
                change |= {"images": images, "timings": result.timings}
            moved = await self._end(live, **change)
            if moved and result is not None:
                self._metrics.result(result)
        except (StorageUnavailable, OSError) as fault:
            log.error("job_not_stored", job=live.job.key.id, reason=str(fault))
            moved = False
        if not moved:
            await asyncio.to_thread(self._files.drop, [image.name for image in images])
        return moved or live.job.state.final

    async def _end(self, live: _Live, **change: Any) -> bool:  # noqa: ANN401 - fields of Job
        """Store a final state; False if the job has one already."""
        if not await self._move(live, completed_s=self._clock(), **change):
            return False
        self._live.pop(live.job.key, None)
        self._sources.drop(live.job)
        live.counted.close()
        self._metrics.job_ended(live.job.key.dialect, live.job.state)
        self._metrics.jobs_unfinished(len(self._live))
        self._expiry.soon()
        return True

    async def _move(self, live: _Live, *, state: JobState, **change: Any) -> bool:  # noqa: ANN401
        """Store the next state of a job, with the webhook calls that this owes; False if it is past that."""
        await live.stored.wait()
        async with live.moving:
            if live.job.state.final or state is live.job.state:
                return False
            job = msgspec.structs.replace(live.job, state=state, **change)
            owed = deliveries_of(job, now=self._clock())
            if not await self._store.run(self._store.move, job, owed):
                live.job = await self.get(job.key)  # it was moved by a call that was cancelled meanwhile
                return False
            live.job = job
        live.tell()
        self.webhooks.owe(owed)
        return True

    def _left_s(self, job: Job) -> float | None:
        return None if job.deadline_s is None else job.deadline_s - self._clock()

    def _model_is_known(self) -> bool:
        try:
            return bool(self._engine.model)
        except NotReady:
            return False
