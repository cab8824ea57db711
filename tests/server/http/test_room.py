"""Room for large bodies: what is taken is given back, and who finds none waits in turn."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest

from server.errors import Overloaded
from server.http.exchange import Exchange
from server.http.room import FREE_BYTES, Room
from tests.server.http.fake_engine import FakeEngine, serving


def run(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 20))


def test_who_finds_no_room_waits_in_turn() -> None:
    async def story() -> None:
        room, came = Room(10), list[int]()

        async def take(size_bytes: int) -> None:
            await room.take(size_bytes)
            came.append(size_bytes)

        await take(8)
        waiting = [asyncio.create_task(take(size_bytes)) for size_bytes in (6, 2)]
        await asyncio.sleep(0)
        assert came == [8], "the small one does not overtake, or the large one would wait for ever"
        room.give(8)
        await asyncio.gather(*waiting)
        assert came == [8, 6, 2]

    run(story)


def test_who_waits_too_long_is_told_to_come_back() -> None:
    async def story() -> None:
        room = Room(10)
        room.wait_s = 0.01
        await room.take(10)
        with pytest.raises(Overloaded):
            await room.take(1)
        room.give(10)
        await room.take(10)

    run(story)


def test_small_bodies_take_none_and_large_ones_once() -> None:
    async def story() -> None:
        room = Room(FREE_BYTES * 3)
        exchange = Exchange("a", max_body_bytes=FREE_BYTES * 3, room=room)
        await exchange.take_room(FREE_BYTES)
        assert exchange.taken_bytes == 0
        await exchange.take_room(FREE_BYTES + 1)
        await exchange.take_room(FREE_BYTES * 3)
        assert exchange.taken_bytes == FREE_BYTES + 1
        exchange.give_room()
        exchange.give_room()
        await room.take(FREE_BYTES * 3)

    run(story)


def test_what_unfinished_bodies_hold_is_given_back_when_their_clients_leave() -> None:
    with serving(FakeEngine(), max_body_mb=32) as url, httpx.Client(base_url=url, timeout=20) as client:
        host, _, port = url.removeprefix("http://").partition(":")
        kind = "Content-Type: application/json"
        head = f"POST /v1/generate HTTP/1.1\r\nHost: a\r\n{kind}\r\nContent-Length: {{}}\r\n\r\n"
        body = b'{"prompt": "a"' + b" " * (2 << 20) + b"}"
        ends = [socket.create_connection((host, int(port))) for _ in range(4)]
        for end in ends:
            end.sendall(head.format(32 << 20).encode() + b" ")
        small = client.post("/v1/generate", json={"prompt": "a"})
        assert small.status_code == 200, "what is small does not wait"
        with socket.create_connection((host, int(port))) as last:
            last.sendall(head.format(len(body)).encode() + body[:1000])
            last.settimeout(0.2)
            with pytest.raises(TimeoutError):
                last.recv(1)
            for end in ends:
                end.close()
            last.settimeout(20)
            last.sendall(body[1000:])
            assert last.recv(4096).startswith(b"HTTP/1.1 200")
