"""The worker's end of the socket pair: blocking frames, read by one thread and written by several."""

import socket
import threading
from collections.abc import Iterator

from server.inherited import bodies
from server.protocol import MAX_TO_WORKER_BYTES, ToFront, ToWorker, decode_to_worker, frame


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
        for body in bodies(self._socket, limit_bytes=MAX_TO_WORKER_BYTES):
            yield decode_to_worker(body)
