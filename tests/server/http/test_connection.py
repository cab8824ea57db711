"""Slow clients: those who do not send, and those who do not read, are let go."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server.http.connection import Connection


class Impatient(Connection):
    receipt_s = 0.3
    write_check_s = 0.2


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 32 MB, more than the buffers of both ends of a socket hold."""
    while (await receive()).get("more_body"):
        pass
    size = 32 << 20 if scope["path"] == "/large" else 2
    headers = [(b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"x" * size})


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[str, int]]:
    config = uvicorn.Config(application, http=Impatient, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(server._serve(sockets=[listener]))
        yield listener.getsockname()[:2]
        server.should_exit = True
        await task


async def talk(data: bytes, *, then: bytes = b"", every_s: float = 0.0) -> bytes:
    """Send `data`, then one byte of `then` at a time; return what came until the connection closed."""
    async with serving() as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(data)
        answer = asyncio.create_task(reader.read())
        for byte in then:
            if answer.done():
                break
            await asyncio.sleep(every_s)
            writer.write(bytes([byte]))
        async with asyncio.timeout(5):
            received = await answer
        writer.close()
        return received


@pytest.mark.parametrize("data", [b"", b"\r\n"], ids=["silent", "blank"])
def test_a_connection_that_says_nothing_is_closed(data: bytes) -> None:
    assert asyncio.run(talk(data)).partition(b"\r\n")[0] in (b"", b"HTTP/1.1 408 Request Timeout")


def test_a_head_that_never_ends_is_answered_with_408() -> None:
    dripped = asyncio.run(talk(b"GET / HTTP/1.1\r\nHost: a\r\n", then=b"X: " + b"y" * 500, every_s=0.01))
    assert dripped.startswith(b"HTTP/1.1 408")


def test_a_body_that_drips_is_answered_with_408() -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n"
    assert asyncio.run(talk(head, then=b"y" * 400, every_s=0.01)).startswith(b"HTTP/1.1 408")


def test_a_request_in_time_is_answered_and_the_next_one_gets_its_own_time() -> None:
    async def story() -> None:
        async with serving() as address:
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                assert await reader.readexactly(2) == b"xx"
                await asyncio.sleep(0.2)
            writer.close()

    asyncio.run(story())


def test_a_client_that_does_not_read_is_let_go() -> None:
    async def story() -> None:
        async with serving() as address:
            with socket.socket() as end:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                end.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(end, address)
                await loop.sock_sendall(end, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
                await asyncio.sleep(1.0)
                received = 0
                while data := await loop.sock_recv(end, 1 << 20):
                    received += len(data)
                assert received < 32 << 20, "the answer was kept for a client that did not read"

    asyncio.run(story())


def test_a_client_that_reads_slowly_but_steadily_is_served() -> None:
    async def story() -> None:
        async with serving() as address:
            reader, writer = await asyncio.open_connection(*address, limit=1 << 16)
            writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            received = 0
            while received < 32 << 20:
                received += len(await reader.read(1 << 20))
                if received % (8 << 20) < 1 << 16:
                    await asyncio.sleep(0.1)
            assert received == 32 << 20
            writer.close()

    asyncio.run(story())
