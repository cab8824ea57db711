"""Streams of events say something while nothing happens, and let go of what they were waiting for."""

import asyncio
from collections.abc import AsyncIterator

from server.http.event_stream import formatted, kept_alive


def test_a_quiet_stream_has_comments_between_its_events() -> None:
    async def read() -> list[bytes]:
        go_on = asyncio.Event()

        async def events() -> AsyncIterator[object]:
            yield {"number": 1}
            await go_on.wait()
            yield {"number": 2}

        seen = []
        async for piece in kept_alive(formatted(events()), quiet_s=0.001):
            seen.append(piece)
            if piece.startswith(b":"):
                go_on.set()
        return seen

    first, *between, last = asyncio.run(read())
    assert (first, last) == (b'data: {"number":1}\n\n', b'data: {"number":2}\n\n')
    assert between
    assert {piece[:1] for piece in between} == {b":"}


def test_who_stops_reading_ends_the_events() -> None:
    ended = []

    async def events() -> AsyncIterator[object]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def read_one() -> None:
        stream = kept_alive(formatted(events()), quiet_s=0.001)
        assert await anext(stream) == b"data: 1\n\n"
        await anext(stream)
        await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    asyncio.run(read_one())
    assert ended == [True]
