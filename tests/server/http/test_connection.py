"""Slow clients: those who do not send, and those who do not read, are let go."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.connection import Connection


class Impatient(Connection):
    receipt_s = 0.3
    write_check_s = 0.2


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 32 MB, more than the buffers of both ends of a socket hold, or what was sent."""
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    answer = {"/large": b"x" * (32 << 20), "/echo": body}.get(scope["path"], b"xx")
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


@asynccontextmanager
async def serving(
    app: ASGIApp = application, *, send_buffer_bytes: int | None = None
) -> AsyncIterator[tuple[str, int]]:
    config = uvicorn.Config(app, http=Impatient, ws="none", lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer_bytes is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
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


@pytest.mark.parametrize("size", [70_000, 1_000_000])
def test_a_long_body_is_not_counted_as_the_next_head(size: int) -> None:
    async def story() -> None:
        async with serving() as address:
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(3):
                writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"y" * size)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                assert await reader.readexactly(2) == b"xx"
            writer.close()

    asyncio.run(story())


@pytest.mark.parametrize("pieces", [1, 40])
def test_a_head_over_the_limit_is_refused_however_it_comes(pieces: int) -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"
    step = -(-len(data) // pieces)

    async def story() -> bytes:
        async with serving() as address:
            reader, writer = await asyncio.open_connection(*address)
            for start in range(0, len(data), step):
                writer.write(data[start : start + step])
                await asyncio.sleep(0.001)
            received = await reader.read()
            writer.close()
            return received

    assert asyncio.run(story()).startswith(b"HTTP/1.1 431")


HTTP2_OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAA\r\n"


@pytest.mark.parametrize(
    ("framing", "body"),
    [
        (b"Content-Length: 11", b"hello world"),
        (b"Transfer-Encoding: chunked", b"6\r\nhello \r\n5\r\nworld\r\n0\r\n\r\n"),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_request_that_offers_http2_keeps_its_body(framing: bytes, body: bytes, apart: bool) -> None:
    """Java's client sends this for every request over plain HTTP."""

    async def story() -> None:
        async with serving() as address:
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(2):
                writer.write(b"POST /echo HTTP/1.1\r\nHost: a\r\n" + HTTP2_OFFER + framing + b"\r\n\r\n")
                if apart:
                    await asyncio.sleep(0.02)
                writer.write(body)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                assert await reader.readexactly(11) == b"hello world"
            writer.close()

    asyncio.run(story())


def test_what_a_plain_request_may_not_smuggle_an_offer_may_not_either() -> None:
    framing = b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"
    data = b"POST /echo HTTP/1.1\r\nHost: a\r\n" + HTTP2_OFFER + framing
    assert asyncio.run(talk(data)).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "data",
    [
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=lambda data: repr(data)[:50],
)
def test_what_is_not_http_1_is_refused_with_an_id(data: bytes) -> None:
    head, _, body = asyncio.run(talk(data)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    error = json.loads(body)["error"]
    assert f"x-request-id: {error['request_id']}".encode() in head
    assert b"connection: close" in head
    assert (error["type"], error["retryable"]) == ("invalid_request_error", False)


def test_requests_in_one_packet_are_answered_in_order() -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    requests = [head + b"\r\n%02d" % number for number in range(49)]
    answers = asyncio.run(talk(b"".join(requests) + head + b"Connection: close\r\n\r\n49"))
    bodies = [answer[-2:] for answer in answers.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"%02d" % number for number in range(50)]


def test_a_blank_line_after_a_request_does_not_cut_its_answer_off() -> None:
    """Old clients send one after a body; the answer may take longer than a request is waited for."""
    finish = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await finish.wait()
        await application(scope, receive, send)

    async def story() -> None:
        async with serving(slow) as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.sleep(0.05)
            writer.write(b"\r\n")
            await asyncio.sleep(Impatient.receipt_s * 2)
            finish.set()
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()

    asyncio.run(story())


def test_a_large_body_may_take_its_time_as_long_as_it_comes() -> None:
    """A picture of 30 MB takes half a minute over a line of 8 Mbit/s."""

    async def story(piece_bytes: int) -> bytes:
        async with serving() as address:
            reader, writer = await asyncio.open_connection(*address)
            pieces = 8
            writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % (pieces * piece_bytes))
            writer.write(b"Connection: close\r\n\r\n")
            for _ in range(pieces):
                writer.write(b"x" * piece_bytes)
                await asyncio.sleep(Impatient.receipt_s / 4)
            answer = await reader.read()
            writer.close()
            return answer

    assert asyncio.run(story(1 << 19)).startswith(b"HTTP/1.1 200")
    assert asyncio.run(story(1 << 10)).startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_a_little_unread_is_let_go_too() -> None:
    """What is left is less than asyncio's usual mark for a full buffer, below which nobody is told."""

    async def story() -> None:
        async with serving(send_buffer_bytes=4096) as address:
            with socket.socket() as end:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                end.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(end, address)
                body = b"y" * 40_000
                await loop.sock_sendall(
                    end, b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 40000\r\n\r\n" + body
                )
                await asyncio.sleep(1.0)
                received = b""
                while data := await loop.sock_recv(end, 1 << 20):
                    received += data
                assert received.count(b"y") < 40_000

    asyncio.run(story())


def test_a_refusal_arrives_although_the_client_goes_on_sending() -> None:
    """A close with unread data resets the connection, and the reset overtakes the answer."""

    async def story() -> None:
        async with serving() as address:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"NONSENSE\r\n\r\n")
            for _ in range(20):
                writer.write(b"x" * 10_000)
                await asyncio.sleep(0.005)
            assert (await reader.read()).startswith(b"HTTP/1.1 400")
            writer.close()

    asyncio.run(story())
