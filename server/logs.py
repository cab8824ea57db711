"""Structured logs on stderr, one line per event, as text or JSON; the same in both processes.

Lines are written by a thread of their own: a pipe that nobody reads holds up neither the event loop nor the
step loop, and what does not fit in the queue is dropped and counted. Prompts are never logged.
"""

import atexit
import contextlib
import logging
import os
import queue
import sys
import threading
import time
from typing import Final

import structlog

QUEUED_LINES: Final = 10_000
FLUSH_S: Final = 1.0


def configure(*, log_format: str, log_level: str) -> None:
    """Set up structlog and hand the standard library's records to it; called once by a `__main__`."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        # Without the local variables of each frame: there the prompts are.
        frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        shared.append(structlog.processors.ExceptionRenderer(frames))
        renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = LineHandler(sys.stderr.fileno())
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(log_level.upper())
    for noisy in ("uvicorn.error", "uvicorn.access", "asyncio", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    atexit.register(flush)


def flush() -> None:
    """Wait until what was logged is written, but not for long."""
    for handler in logging.getLogger().handlers:
        handler.flush()


class LineHandler(logging.Handler):
    """Formats where it is called, writes in a thread.

    To the descriptor itself: a lock of `sys.stderr` held by a blocked write aborts the interpreter's exit.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._lines: queue.Queue[str] = queue.Queue(QUEUED_LINES)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except queue.Full:
            self.dropped += 1

    def flush(self) -> None:
        deadline = time.monotonic() + FLUSH_S
        with self._lines.all_tasks_done:
            while self._lines.unfinished_tasks and (left_s := deadline - time.monotonic()) > 0:
                self._lines.all_tasks_done.wait(left_s)

    def _write(self) -> None:
        while True:
            self._write_line(self._lines.get())
            if self.dropped and self._lines.empty():
                dropped, self.dropped = self.dropped, 0
                self._write_line(self.format(_told(f"{dropped} log lines were dropped: nobody read them")))
            self._lines.task_done()

    def _write_line(self, line: str) -> None:
        data = f"{line}\n".encode(errors="backslashreplace")
        with contextlib.suppress(OSError):  # nobody will read it, and there is nowhere to say so
            while data:
                data = data[os.write(self._descriptor, data) :]


def _told(message: str) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": __name__, "levelname": "WARNING", "levelno": logging.WARNING, "msg": message}
    )
