"""What is known of one HTTP exchange while it lasts: written by handlers, read once when it ends."""

from dataclasses import dataclass, field
from typing import cast

from fastapi import Request
from starlette.types import Scope

from server.caller import Caller
from server.generation import GenerationResult
from server.http.room import FREE_BYTES, Room

SCOPE_KEY = "schnell.exchange"


class ClientGone(Exception):
    """Nobody is left to answer."""


@dataclass(slots=True)
class Exchange:
    """`outcome` is `ok` or the code of an error; `note` is for the log line and never holds a prompt.

    `headers` go out with whatever the answer is. `caller` is None on routes that are for anybody.
    """

    request_id: str
    max_body_bytes: int
    room: Room = field(default_factory=lambda: Room(0))
    taken_bytes: int = 0
    outcome: str = "ok"
    result: GenerationResult | None = None
    caller: Caller | None = None
    note: dict[str, object] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    async def take_room(self, size_bytes: int) -> None:
        """Take room for a body of this length, once; raises `Overloaded`."""
        if size_bytes > FREE_BYTES and not self.taken_bytes:
            await self.room.take(size_bytes)
            self.taken_bytes = size_bytes

    def give_room(self) -> None:
        """The body is not needed any more."""
        self.room.give(self.taken_bytes)
        self.taken_bytes = 0


def exchange_in(scope: Scope) -> Exchange:
    return cast(Exchange, scope[SCOPE_KEY])


def exchange_of(request: Request) -> Exchange:
    return exchange_in(request.scope)


def key_of(request: Request) -> str:
    """Return the name of the API key that asks, empty where none is asked for."""
    caller = exchange_of(request).caller
    return caller.name if caller is not None else ""
