"""Server-sent events that go on: each as soon as it is there, and a comment where there is none for long."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from fastapi import Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

QUIET_S: Final = 15.0  # what is between may take a silent connection for a dead one


def events_response(events: AsyncIterator[object]) -> Response:
    """Answer with `events`, each of them something that JSON knows."""
    return StreamingResponse(written(events, quiet_s=QUIET_S), media_type="text/event-stream")


async def written(events: AsyncIterator[object], *, quiet_s: float) -> AsyncIterator[bytes]:
    """Yield `events` as they are sent, and a comment after every `quiet_s` without one."""
    coming = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            await asyncio.wait((coming,), timeout=quiet_s)
            if not coming.done():
                yield KEEPALIVE_COMMENT
                continue
            event = coming.result()
            if event is None:
                return
            yield format_sse_event(data_str=msgspec.json.encode(event).decode())
            coming = asyncio.ensure_future(anext(events, None))
    finally:
        coming.cancel()
