"""uvicorn's connection with limits that uvicorn does not have: on heads, on slow senders, on slow readers.

uvicorn 0.54 buffers a header of any length, waits for ever for the rest of a request, keeps answers for
clients that never read them, and loses the body of a request that offers an upgrade. httptools is the parser
(not h11): it refuses requests with both a length and chunks, and takes a body of a million chunks in a tenth
of the time.
"""

import asyncio
import secrets
from typing import Any, Final

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import InvalidRequest, MalformedBody, RequestTooLarge
from server.http.errors import error_body, error_kind

MAX_HEAD_BYTES: Final = 64 << 10
MAX_HEADERS: Final = 100
RECEIPT_S: Final = 15.0  # from the first byte of a request to the last of its body, unless that is large:
BODY_BYTES_PER_RECEIPT: Final = 1 << 20  # who brings so much of a body in that time has it once more
WRITE_CHECK_S: Final = 5.0
WRITE_BYTES_PER_CHECK: Final = 16 << 10
LINGER_S: Final = 1.0  # closing on a client that still sends would destroy the answer on its way
VERSIONS: Final = ("1.0", "1.1")
UPGRADE_HEADERS: Final = (b"connection", b"upgrade", b"http2-settings")

log = structlog.get_logger("server.connection")


class Connection(HttpToolsProtocol):
    """One client connection. Class attributes are the limits, so that a test can have small ones."""

    receipt_s = RECEIPT_S
    write_check_s = WRITE_CHECK_S

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own signature
        super().__init__(*arguments, **options)
        self._in_request = False  # its first byte was here, its last was not
        self._in_head = True
        self._head_bytes = 0
        self._requests = 0
        self._refused = False
        self._plain_head = b""  # what a request that offers an upgrade would be without the offer
        self._body_bytes = 0  # that came since the receipt was last expected
        self._receipt: asyncio.TimerHandle | None = None
        self._progress: asyncio.TimerHandle | None = None
        self._linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1, low=0)  # so that we hear of everything that is not taken
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timers()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._receipt is None:
            self._expect_request()
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, RequestTooLarge(f"the head is longer than {MAX_HEAD_BYTES} bytes"))
            return
        requests = self._requests
        self._body_bytes += 0 if self._in_head else len(data)
        self._parse(data)
        if self._in_head and self._requests == requests:
            self._head_bytes += len(data)
        if self._in_request and self._receipt is None and not self._refused:
            self._expect_request()  # the end of one request and the beginning of the next came together

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_request = True

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        if refusal := self._refusal():
            self._refuse(*refusal)
            raise ConnectionAbortedError("refused before it reached the application")
        if self.parser.should_upgrade():
            self._plain_head = self._head_without_upgrade()
        else:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._plain_head:
            return
        super().on_message_complete()
        self._in_request = False
        self._in_head = True
        self._requests += 1
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

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offered:
                # The parser takes the body for another protocol. Java's client offers HTTP/2 on every
                # request, and we may decline: then the request goes on as if nothing had been offered.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
                data = self._plain_head + data[offered.args[0] :]
                self._plain_head = b""
            except httptools.HttpParserError:
                if not self._refused:
                    self._refuse(400, MalformedBody("this is not HTTP/1.1"))
                return

    def _refusal(self) -> tuple[int, InvalidRequest] | None:
        """Return what is wrong with a head, as a status and its error."""
        head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if head_bytes > MAX_HEAD_BYTES:
            return 431, RequestTooLarge(f"the head is longer than {MAX_HEAD_BYTES} bytes")
        if len(self.headers) > MAX_HEADERS:
            return 431, RequestTooLarge(f"there are more than {MAX_HEADERS} headers")
        version = self.parser.get_http_version()
        if version not in VERSIONS or self.parser.get_method() == b"CONNECT":
            return 400, MalformedBody("this server speaks HTTP/1.1 and is no proxy")
        if version == "1.1" and sum(name == b"host" for name, _ in self.headers) != 1:
            return 400, MalformedBody("a request has exactly one Host header")
        return None

    def _head_without_upgrade(self) -> bytes:
        kept = [name + b": " + value for name, value in self.headers if name not in UPGRADE_HEADERS]
        return b"\r\n".join((self.parser.get_method() + b" " + self.url + b" HTTP/1.1", *kept, b"", b""))

    def _expect_request(self) -> None:
        self._body_bytes = 0
        self._receipt = self.loop.call_later(self.receipt_s, self._too_slow)

    def _too_slow(self) -> None:
        self._receipt = None
        busy = self.cycle is not None and not self.cycle.response_complete
        if self._in_request and self.flow.read_paused:
            self._expect_request()  # it is we who do not read: an earlier request, or many, are at work
        elif self._in_request and self._body_bytes >= BODY_BYTES_PER_RECEIPT:
            self._expect_request()
        elif self._in_request:
            self._refuse(408, MalformedBody(f"the request did not arrive within {self.receipt_s:g} s"))
        elif not busy:
            self.transport.close()

    def _watch_progress(self, before_bytes: int) -> None:
        """Abort a client that reads slower than a few kilobytes a second: its answer fills our memory."""

        def check() -> None:
            left_bytes = self.transport.get_write_buffer_size()
            if before_bytes - left_bytes < WRITE_BYTES_PER_CHECK:
                self.transport.abort()
            else:
                self._watch_progress(left_bytes)

        self._progress = self.loop.call_later(self.write_check_s, check)

    def _refuse(self, status: int, error: InvalidRequest) -> None:
        """Answer in the shape of every other error, and close; in the middle of an answer only close."""
        self._refused = True
        if self._receipt is not None:
            self._receipt.cancel()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started or self.pipeline:
                self.transport.abort()
                return
            cycle.disconnected = True
            cycle.message_event.set()
        request_id = secrets.token_hex(16)
        body = error_body(error, request_id, error_kind(status))
        self.transport.write(self._refusal_response(status, body, request_id))
        log.info("refused", request_id=request_id, status=status, outcome=error.code, reason=error.message)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._linger = self.loop.call_later(LINGER_S, self.transport.abort)
        else:
            self.transport.close()

    def _refusal_response(self, status: int, body: bytes, request_id: str) -> bytes:
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", request_id.encode()),
            (b"server-timing", b"total;dur=0.0"),
        ]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return STATUS_LINE[status] + head + b"\r\n" + body

    def _stop_timers(self) -> None:
        for timer in (self._receipt, self._progress, self._linger):
            if timer is not None:
                timer.cancel()
        self._receipt = self._progress = self._linger = None
