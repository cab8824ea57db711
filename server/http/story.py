"""What becomes of a request, told while it runs: as server-sent events that a dialect words.

Here the work is started, each event is written as it happens, and the work ends when the client leaves.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import structlog
from fastapi import Request, Response

from server.errors import ServerError
from server.events import Event
from server.generation import Image
from server.http.errors import unexpected_error
from server.http.event_stream import stream_response
from server.http.exchange import ClientGone, Exchange, exchange_of
from server.http.pictures import pieces
from server.roster import Watch

log = structlog.get_logger("server.access")

Words = tuple[str, dict[str, Any]]  # the name of an event, if it has one, and what becomes its data as JSON
Made = TypeVar("Made")
Told = TypeVar("Told", contravariant=True)
Generate = Callable[[Watch], Coroutine[Any, Any, Made]]


class Script(Protocol[Told]):
    """How a dialect words what happens; None is nothing to say."""

    def tell(self, number: int, event: Event) -> Words | None:
        """Word an event of the picture with this number."""

    def end(self, made: Told, told: Collection[int]) -> Iterable[Words]:
        """Word the end; `told` are the numbers of the pictures that were told before.

        Those of a retry were made before anybody listened.
        """

    def fail(self, error: ServerError) -> Words:
        """Word a failure, which is the end too."""


async def event_response(http: Request, script: Script[Made], generate: Generate[Made]) -> Response:
    """Answer with events; raises what goes wrong before the first, so that a refusal keeps its status."""
    story = Story(script, exchange_of(http))
    await story.begin(generate)
    return stream_response(story.written())


@dataclass(slots=True)
class Story(Generic[Made]):
    """One request from its first event to its end."""

    script: Script[Made]
    exchange: Exchange
    _happened: "asyncio.Queue[tuple[int, Event] | None]" = field(default_factory=asyncio.Queue)
    _latest: tuple[int, Event] | None = None  # None is the end
    _work: "asyncio.Task[Made]" = field(init=False)

    async def begin(self, generate: Generate[Made]) -> None:
        """Start the work and wait for its first event; raises what ended it before."""

        def hear(number: int, event: Event) -> None:
            self._happened.put_nowait((number, event))

        def hear_end(work: "asyncio.Task[Made]") -> None:
            if not work.cancelled():
                work.exception()  # seen, also where nobody is left to tell
            self._happened.put_nowait(None)

        self._work = asyncio.create_task(generate(Watch(listen=hear)))
        self._work.add_done_callback(hear_end)
        try:
            self._latest = await self._happened.get()
        except asyncio.CancelledError:
            self._work.cancel()
            raise
        if self._latest is None:
            self._work.result()

    async def written(self) -> AsyncIterator[bytes]:
        """Yield the stream in pieces; one that breaks off is that of a client that left."""
        self.exchange.outcome = "client_gone"
        try:
            async for name, data in self._worded():
                yield (f"event: {name}\n" if name else "").encode() + b"data: "
                async for piece in pieces(data):
                    yield piece
                yield b"\n\n"
        finally:
            self._work.cancel()

    async def _worded(self) -> AsyncIterator[Words]:
        """Yield what to say until the end."""
        told: set[int] = set()
        while self._latest is not None:
            number, event = self._latest
            if isinstance(event, Image):
                told.add(number)
            if words := self.script.tell(number, event):
                yield words
            self._latest = await self._happened.get()
        if error := self._error():
            yield self.script.fail(error)
            self.exchange.outcome = error.code
            return
        for words in self.script.end(self._work.result(), told):
            yield words
        self.exchange.outcome = "ok"

    def _error(self) -> ServerError | None:
        """Return what went wrong; a fault of ours is logged, and the client told no more than that."""
        error = self._work.exception()
        if error is None or isinstance(error, ServerError):
            return error
        if isinstance(error, ClientGone):
            raise error
        log.error("unexpected", request_id=self.exchange.request_id, exc_info=error)
        return unexpected_error()
