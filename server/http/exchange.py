"""What is known of one HTTP exchange while it lasts: written by handlers, read once when it ends."""

from dataclasses import dataclass, field
from typing import cast

from fastapi import Request
from starlette.types import Scope

from server.generation import GenerationResult

SCOPE_KEY = "schnell.exchange"


class ClientGone(Exception):
    """Nobody is left to answer."""


@dataclass(slots=True)
class Exchange:
    """`outcome` is `ok` or the code of an error; `note` is for the log line and never holds a prompt.

    `headers` go out with whatever the answer is.
    """

    request_id: str
    outcome: str = "ok"
    result: GenerationResult | None = None
    note: dict[str, object] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


def owner_of(request: Request) -> str:
    """Return whose jobs a request may speak of: the name of its key, empty where there are no keys."""
    return ""


def exchange_in(scope: Scope) -> Exchange:
    return cast(Exchange, scope[SCOPE_KEY])


def exchange_of(request: Request) -> Exchange:
    return exchange_in(request.scope)
