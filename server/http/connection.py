"""uvicorn's connection with limits that uvicorn does not have: on heads, on slow senders, on slow readers.

uvicorn 0.54 buffers a header of any length, waits for ever for the rest of a request, and keeps answers for
clients that never read them. httptools is the parser (not h11): it refuses requests with both a length and
chunks, and takes a body of a million chunks in a tenth of the time.
"""

import asyncio
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

MAX_HEAD_BYTES: Final = 64 << 10
MAX_HEADERS: Final = 100
RECEIPT_S: Final = 15.0  # from the first byte of a request to the last of its body
WRITE_CHECK_S: Final = 5.0
WRITE_BYTES_PER_CHECK: Final = 16 << 10


class Connection(HttpToolsProtocol):
    """One client connection. Class attributes are the limits, so that a test can have small ones."""

    receipt_s = RECEIPT_S
    write_check_s = WRITE_CHECK_S

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own signature
        super().__init__(*arguments, **options)
        self._head_open = True
        self._head_bytes = 0
        self._receipt: asyncio.TimerHandle | None = None
        self._progress: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._receipt is None and self._head_open:
            self._expect_request()
        if self._head_open and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "request_too_large", f"the head is longer than {MAX_HEAD_BYTES} bytes")
            return
        super().data_received(data)
        if self._head_open:
            self._head_bytes += len(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_open = True

    def on_headers_complete(self) -> None:
        self._head_open = False
        self._head_bytes = 0
        names = [name for name, _ in self.headers]
        if len(names) > MAX_HEADERS:
            self._refuse(431, "request_too_large", f"there are more than {MAX_HEADERS} headers")
        elif self.parser.get_http_version() == "1.1" and names.count(b"host") != 1:
            self._refuse(400, "malformed_body", "a request has exactly one Host header")
        if self.transport.is_closing():
            raise ConnectionAbortedError("refused before it reached the application")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head_open = True
        if self._receipt is not None:
            self._receipt.cancel()
            self._receipt = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_progress(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._progress is not None:
            self._progress.cancel()
            self._progress = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; also called by uvicorn for an error raised in a callback above."""
        if not self.transport.is_closing():
            self._refuse(400, "malformed_body", msg)

    def _expect_request(self) -> None:
        self._receipt = self.loop.call_later(self.receipt_s, self._too_slow)

    def _too_slow(self) -> None:
        self._receipt = None
        if self._head_open and self._head_bytes == 0:
            self.transport.close()
        else:
            self._refuse(408, "malformed_body", f"the request did not arrive within {self.receipt_s:g} s")

    def _watch_progress(self, before_bytes: int) -> None:
        """Abort a client that reads slower than a few kilobytes a second: its answer fills our memory."""

        def check() -> None:
            left_bytes = self.transport.get_write_buffer_size()
            if before_bytes - left_bytes < WRITE_BYTES_PER_CHECK:
                self.transport.abort()
            else:
                self._watch_progress(left_bytes)

        self._progress = self.loop.call_later(self.write_check_s, check)

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer in the shape of every other error, and close."""
        kind = "invalid_request_error"
        error = {
            "code": code,
            "type": kind,
            "message": message,
            "param": None,
            "request_id": None,
            "retryable": False,
        }
        body = msgspec.json.encode({"error": error})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            body
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self._stop_timers()
        self.transport.close()

    def _stop_timers(self) -> None:
        for timer in (self._receipt, self._progress):
            if timer is not None:
                timer.cancel()
        self._receipt = self._progress = None
