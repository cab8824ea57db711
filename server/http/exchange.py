"""What is known of one HTTP exchange while it lasts: written by handlers, read once when it ends."""

from dataclasses import dataclass, field
from typing import cast

from fastapi import Request
from starlette.types import Scope

from server.caller import Caller
from server.generation import GenerationResult

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
    outcome: str = "ok"
    result: GenerationResult | None = None
    caller: Caller | None = None
    note: dict[str, object] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def exchange_in(scope: Scope) -> Exchange:
    return cast(Exchange, scope[SCOPE_KEY])


def exchange_of(request: Request) -> Exchange:
    return exchange_in(request.scope)


def key_of(request: Request) -> str:
    """Return the name of the API key that asks, empty where none is asked for."""
    caller = exchange_of(request).caller
    return caller.name if caller is not None else ""
