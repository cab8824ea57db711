"""One worker process: spawned, spoken to over an inherited socket pair, watched, and replaced when it dies.

What the worker says goes to the engine through callbacks; which request runs where is not known here.
"""

import asyncio
import socket
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

import structlog

from server.child import end, spawn
from server.protocol import (
    FRAME_HEADER,
    MAX_TO_FRONT_BYTES,
    Fatal,
    ProtocolError,
    Ready,
    Start,
    Stop,
    ToFront,
    ToWorker,
    body_length,
    decode_to_front,
    frame,
)

WORKER_COMMAND: Final = (sys.executable, "-m", "server.worker")
READ_BYTES: Final = 1 << 20
FIRST_DELAY_S: Final = 0.05
MAX_DELAY_S: Final = 10.0
MAX_DOUBLINGS: Final = 10  # enough to reach the longest delay; 2.0 ** 1024 would overflow after three hours
GONE_S: Final = 0.2  # a worker that died is reaped by then; one that only closed its socket is killed
STOP_S: Final = 1.0  # a worker that was told to stop has nothing in hand; one that does not go is killed

log = structlog.get_logger(__name__)


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    LOST = "lost"
    REFUSED = "refused"  # it said that a restart would end the same way
    STOPPED = "stopped"


class Supervisor:
    """Keeps one worker alive until it is stopped.

    `on_message` gets every message; `on_change` is called after every change of `state`.
    """

    def __init__(
        self,
        start: Start,
        *,
        on_message: Callable[[ToFront], None],
        on_change: Callable[[], None],
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        self.start_message = start
        self.state = State.STARTING
        self.failures = 0  # deaths since it was ready last
        self.restarts = 0
        self.refusal = ""
        self._on_message = on_message
        self._on_change = on_change
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._stopping = False
        self._was_ready = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Begin; the worker is ready when `state` says so."""
        self._task = asyncio.create_task(self._keep_alive(), name=f"worker {self.start_message.device}")

    def send(self, message: ToWorker) -> None:
        """Queue a message; to a worker that just died it is lost, and its death is reported."""
        if self._writer is not None:
            self._writer.write(frame(message))

    def kill(self) -> None:
        """End the process at once; it is replaced as after any death."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    def refuse(self, reason: str) -> None:
        """End the process for good."""
        self.refusal = reason
        self._enter(State.REFUSED)
        self.kill()

    async def stop(self) -> None:
        """End the worker and wait until it is gone; one that is ready is asked first."""
        self._stopping = True
        if self._task is not None:
            if self.state is State.READY:
                self.send(Stop())
                await asyncio.wait([self._task], timeout=STOP_S)
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._process is not None:  # it was ending already, and that was cancelled
            await end(self._process, within_s=0.0)
            self._process = None
        if self.state is not State.REFUSED:
            self._enter(State.STOPPED)

    async def _keep_alive(self) -> None:
        while not self._stopping:
            self._enter(State.STARTING)
            try:
                await self._live_once()
            except OSError:  # no sockets or processes left for now
                log.exception("worker_not_started", command=self._command)
                self._lose()
            if self._stopping or self.state is State.REFUSED:
                break
            delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** min(self.failures - 1, MAX_DOUBLINGS))
            log.warning("worker_lost", device=self.start_message.device, restart_in_s=delay_s)
            await asyncio.sleep(delay_s)

    async def _live_once(self) -> None:
        """Spawn a worker and read what it says until it is gone; leaves no process behind."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                self._process = await spawn(self._command, theirs)
            try:
                reader, self._writer = await asyncio.open_connection(sock=ours, limit=READ_BYTES)
                self._writer.write(frame(self.start_message))
                await self._read(reader)
            finally:
                if self._writer is not None:
                    self._writer.transport.abort()
                    self._writer = None
                self._lose()
                await end(self._process, within_s=STOP_S if self._stopping else GONE_S)
                self._process = None

    def _lose(self) -> None:
        """Tell of a death at once: what the worker had in hand need not wait until its process is gone."""
        if not self._stopping and self.state is not State.REFUSED:
            self.failures += 1
            self.restarts += 1
            self._enter(State.LOST)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Hand on messages until the stream ends or makes no sense."""
        try:
            while True:
                header = await reader.readexactly(FRAME_HEADER.size)
                length = body_length(header, limit_bytes=MAX_TO_FRONT_BYTES)
                self._hear(decode_to_front(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except ProtocolError as error:
            log.error("worker_talks_nonsense", device=self.start_message.device, reason=str(error))
        except Exception:  # a fault of ours while it was heard: without a reader nobody would be answered
            log.exception("reader_failed", device=self.start_message.device)

    def _hear(self, message: ToFront) -> None:
        match message:
            case Ready():
                self.failures = 0
                log.info("worker_ready", device=message.model.device, pid=self.pid)
                self._on_message(message)
                if self.state is not State.REFUSED:
                    self._was_ready = True
                    self._enter(State.READY)
            case Fatal(message=reason) if self._was_ready:  # it could load once: what is wrong may pass
                log.error("worker_cannot_load", device=self.start_message.device, reason=reason)
            case Fatal(message=reason):
                self.refusal = reason
                self._enter(State.REFUSED)
            case _:
                self._on_message(message)

    def _enter(self, state: State) -> None:
        self.state = state
        self._on_change()
