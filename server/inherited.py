"""A child process's side of its birth: its end of the socket pair, and whom it lives with.

Called by the `__main__` of the worker and of the decoder; blocking, without asyncio.
"""

import argparse
import ctypes
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Final

from server.protocol import FRAME_HEADER, body_length

PR_SET_PDEATHSIG: Final = 1


def arguments(program: str) -> argparse.ArgumentParser:
    """Return a parser that knows `--fd`, the number of the inherited end."""
    parser = argparse.ArgumentParser(prog=program)
    parser.add_argument("--fd", type=int, required=True, help="inherited end of the socket pair")
    return parser


def take_end(fd: int) -> socket.socket:
    """Return the inherited end; from now on this process ends with its parent, and with nobody else."""
    end = socket.socket(fileno=fd)
    end.set_inheritable(False)  # a compiler that outlives this process must not hide its end
    _die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl+C and systemd tell every process of the group,
        signal.signal(number, signal.SIG_IGN)  # but the front end drains first and then says so
    return end


def bodies(end: socket.socket, *, limit_bytes: int) -> Iterator[bytes]:
    """Yield the bodies of frames until the front end is gone; raises `ProtocolError` above the limit."""
    while header := _read(end, FRAME_HEADER.size):
        yield _read(end, body_length(header, limit_bytes=limit_bytes))


def _read(end: socket.socket, count: int) -> bytes:
    """Read exactly `count` bytes; fewer only at the end of the stream, which then counts as nothing."""
    data = bytearray()
    while len(data) < count:
        received = end.recv(count - len(data))
        if not received:
            return b""
        data += received
    return bytes(data)


def _die_with_parent() -> None:
    """Have the kernel end this process with its parent, also while it computes (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
