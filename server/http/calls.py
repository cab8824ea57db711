"""Running a request for a client that may leave: its going away cancels what nobody else waits for."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec
from fastapi import Request

from server.engine import Engine
from server.errors import NotReady
from server.events import Listener, ignore_all
from server.generation import GenerationRequest, GenerationResult
from server.http.cache_control import cache_status, reuse_of
from server.http.exchange import ClientGone, exchange_of
from server.http.idempotency import Once
from server.http.limits import limit_headers
from server.job import Job
from server.jobs import Jobs
from server.roster import UNWATCHED, Watch

Answer = TypeVar("Answer")


async def generate(
    engine: Engine,
    http: Request,
    request: GenerationRequest,
    *,
    seeded: bool,
    once: Once | None = None,
    watch: Watch = UNWATCHED,
) -> GenerationResult:
    """Submit `request` and wait; raises what the engine raises, `ClientGone`, or what `once` raises.

    It runs in the caller's name; raises `Forbidden`, `RateLimited` or `QuotaExceeded` when it may not.

    `seeded` when the client chose the seed: only then may its pictures be those of other requests. With
    `once` the answer may be the one that an earlier request with the same idempotency key got. The body of
    `http` has been read, so that the next thing it can say is that the client left.
    """
    exchange = exchange_of(http)
    caller = exchange.caller
    assert caller is not None, "routes that make pictures are guarded"
    request = caller.sign(request)
    exchange.note.update(
        width=request.width, height=request.height, steps=request.run_steps, images=request.num_images
    )
    reuse = reuse_of(http, seeded=seeded)

    async def make() -> GenerationResult:
        exchange.result = await engine.submit(request, reuse, watch)
        exchange.headers["Cache-Status"] = cache_status(exchange.result, reuse, seeded=seeded)
        return exchange.result

    try:
        with caller.entering():
            result = await unless_client_leaves(http, make() if once is None else once.answer(http, make))
    finally:
        exchange.headers |= limit_headers(caller.standings())
    exchange.headers["X-Steps"] = str(result.run_steps)
    return result


def check_limits(http: Request) -> None:
    """Raise `RateLimited` or `QuotaExceeded` for who may not ask now, before its pictures make work."""
    exchange = exchange_of(http)
    caller = exchange.caller
    assert caller is not None, "routes that make pictures are guarded"
    try:
        caller.check_limits()
    finally:
        exchange.headers |= limit_headers(caller.standings())


async def submit_job(jobs: Jobs, http: Request, job: Job, listen: Listener = ignore_all) -> Job:
    """Accept a job in the caller's name; raises what `Jobs.submit` raises, or what a key may not."""
    exchange = exchange_of(http)
    caller = exchange.caller
    assert caller is not None, "routes that make pictures are guarded"
    signed = msgspec.structs.replace(job, request=caller.sign(job.request))
    try:
        accepted = await jobs.submit(signed, caller.entering(), listen)
    finally:
        exchange.headers |= limit_headers(caller.standings())
    exchange.note["job"] = accepted.key.id
    return accepted


async def finished_job(jobs: Jobs, http: Request, job: Job) -> Job:
    """Wait for the end of a job, and return it; a client that leaves takes it along.

    Raises `ClientGone`, and `NotReady` where nothing takes it at the moment: then it is ended.
    """
    return await unless_client_leaves(http, _to_its_end(jobs, job))


async def _to_its_end(jobs: Jobs, job: Job) -> Job:
    try:
        async for moved in jobs.changes(job.key):
            job = moved
    except asyncio.CancelledError:
        await jobs.cancel(job.key)
        raise
    if not job.state.final:
        await jobs.cancel(job.key)
        raise NotReady("nothing takes the request at the moment")
    return job


async def unless_client_leaves(http: Request, answering: Coroutine[Any, Any, Answer]) -> Answer:
    """Return what is being done for a client whose body has been read; raises `ClientGone`, and ends it."""
    work = asyncio.create_task(answering)
    leaving = asyncio.create_task(_disconnect(http))
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        for task in (work, leaving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await work


async def _disconnect(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
