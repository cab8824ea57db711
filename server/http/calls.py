"""Running a request for a client that may leave: its going away cancels its work."""

import asyncio
import contextlib

from fastapi import Request

from server.engine import Engine
from server.generation import GenerationRequest, GenerationResult
from server.http.exchange import ClientGone, exchange_of


async def generate(engine: Engine, http: Request, request: GenerationRequest) -> GenerationResult:
    """Submit `request` and wait; raises what the engine raises, or `ClientGone`.

    The body of `http` has been read, so that the next thing it can say is that the client left.
    """
    exchange = exchange_of(http)
    exchange.note.update(
        width=request.width, height=request.height, steps=request.steps, images=request.num_images
    )
    work = asyncio.create_task(engine.submit(request))
    leaving = asyncio.create_task(_disconnect(http))
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        exchange.result = work.result()
        return exchange.result
    finally:
        for task in (work, leaving):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await work


async def _disconnect(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
