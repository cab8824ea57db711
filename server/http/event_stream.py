"""Server-sent events that go on: each as soon as it is there, and a comment where there is none for long."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from fastapi import Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

EVENT_STREAM: Final = "text/event-stream"
QUIET_S: Final = 15.0  # what is between may take a silent connection for a dead one


def events_response(events: AsyncIterator[object]) -> Response:
    """Answer with `events`, each of them something that JSON knows."""
    return stream_response(formatted(events))


def stream_response(stream: AsyncIterator[bytes]) -> Response:
    """Answer with a stream of events that are written already."""
    headers = {"X-Accel-Buffering": "no"}  # or nginx would gather them
    return StreamingResponse(kept_alive(stream, quiet_s=QUIET_S), media_type=EVENT_STREAM, headers=headers)


async def kept_alive(stream: AsyncIterator[bytes], *, quiet_s: float) -> AsyncIterator[bytes]:
    """Yield a stream, and a comment after every `quiet_s` in which nothing came of it."""
    coming = asyncio.ensure_future(anext(stream, None))
    try:
        while True:
            await asyncio.wait((coming,), timeout=quiet_s)
            if not coming.done():
                yield KEEPALIVE_COMMENT
                continue
            piece = coming.result()
            if piece is None:
                return
            yield piece
            coming = asyncio.ensure_future(anext(stream, None))
    finally:
        coming.cancel()


async def formatted(events: AsyncIterator[object]) -> AsyncIterator[bytes]:
    """Yield `events` as they are written."""
    async for event in events:
        yield format_sse_event(data_str=msgspec.json.encode(event).decode())
