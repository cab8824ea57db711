"""The worker's end of the socket pair: blocking frames, read by one thread and written by several."""

import socket
import threading
from collections.abc import Iterator

from server.protocol import (
    FRAME_HEADER,
    MAX_TO_WORKER_BYTES,
    ToFront,
    ToWorker,
    body_length,
    decode_to_worker,
    frame,
)


class Connection:
    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._writing = threading.Lock()

    def send(self, message: ToFront) -> None:
        """Write one message whole; raises `OSError` when the front end is gone."""
        data = frame(message)
        with self._writing:
            self._socket.sendall(data)

    def messages(self) -> Iterator[ToWorker]:
        """Yield messages until the front end is gone; raises `ProtocolError` for what is none."""
        while header := self._read(FRAME_HEADER.size):
            yield decode_to_worker(self._read(body_length(header, limit_bytes=MAX_TO_WORKER_BYTES)))

    def _read(self, count: int) -> bytes:
        """Read exactly `count` bytes; fewer only at the end of the stream, which then counts as nothing."""
        data = bytearray()
        while len(data) < count:
            received = self._socket.recv(count - len(data))
            if not received:
                return b""
            data += received
        return bytes(data)
