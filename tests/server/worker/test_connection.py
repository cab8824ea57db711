"""Blocking frames over a socket pair: whole messages in order, an end that is an end, nothing oversized."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server.generation import Image, Timings
from server.protocol import (
    FRAME_HEADER,
    MAX_TO_WORKER_BYTES,
    Cancel,
    Done,
    ProtocolError,
    Stop,
    body_length,
    decode_to_front,
    frame,
)
from server.worker.connection import Connection


@contextmanager
def connected() -> Iterator[tuple[Connection, socket.socket]]:
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.settimeout(10)
        yield Connection(theirs), ours


def read(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += end.recv(count - len(data))
    return data


def test_messages_arrive_in_order_however_they_are_cut() -> None:
    with connected() as (connection, front):
        sent = [Cancel(id="a/0"), Cancel(id="ü" * 500), Stop()]
        data = b"".join(frame(message) for message in sent)

        def drip() -> None:
            for start in range(0, len(data), 7):
                front.sendall(data[start : start + 7])
            front.shutdown(socket.SHUT_WR)

        writer = threading.Thread(target=drip)
        writer.start()
        assert list(connection.messages()) == sent
        writer.join(10)


def test_the_end_of_the_stream_ends_the_messages() -> None:
    with connected() as (connection, front):
        front.close()
        assert list(connection.messages()) == []


@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_half_a_message_is_no_message(cut: int) -> None:
    with connected() as (connection, front):
        front.sendall(frame(Cancel(id="a/0"))[:cut])
        front.close()
        with pytest.raises(ProtocolError) if cut >= FRAME_HEADER.size else _nothing():
            assert list(connection.messages()) == []


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def test_an_oversized_frame_is_refused_by_its_header() -> None:
    with connected() as (connection, front):
        front.sendall(FRAME_HEADER.pack(MAX_TO_WORKER_BYTES + 1))
        with pytest.raises(ProtocolError, match=str(MAX_TO_WORKER_BYTES)):
            next(connection.messages())


def test_what_several_threads_send_is_not_mixed() -> None:
    with connected() as (connection, front):
        timings = Timings()

        def picture(number: int) -> Done:
            image = Image(
                data=bytes([number]) * 300_000,
                content_type="",
                width=1,
                height=1,
                seed=number,
                timings=timings,
            )
            return Done(id=f"{number}/0", image=image)

        threads = [threading.Thread(target=connection.send, args=(picture(number),)) for number in range(8)]
        for thread in threads:
            thread.start()
        received = []
        for _ in threads:
            length = body_length(read(front, FRAME_HEADER.size), limit_bytes=1 << 20)
            received.append(decode_to_front(read(front, length)))
        for thread in threads:
            thread.join(10)
        assert sorted(received, key=lambda message: message.id) == [picture(number) for number in range(8)]  # type: ignore[union-attr]


def test_sending_to_nobody_raises() -> None:
    with connected() as (connection, front):
        front.close()
        with pytest.raises(OSError):
            connection.send(Done(id="a/0", image=_large()))


def _large() -> Image:
    return Image(data=b"x" * (1 << 20), content_type="", width=1, height=1, seed=0, timings=Timings())
