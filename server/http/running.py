"""What a caller has running, for dialects in which another request asks after it or stops it."""

import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import msgspec
from fastapi import Request

from server.generation import GenerationRequest
from server.http.body import RequestBody
from server.http.exchange import key_of


@dataclass(frozen=True, slots=True)
class Call:
    """A request in hand, the body that it came from, and when it came, on the clock of its dialect."""

    request: GenerationRequest
    body: RequestBody
    began_s: float


@dataclass(slots=True)
class Running:
    """The calls in hand by caller, in the order in which they came; their names are the callers' own.

    The id of a request is a client's to choose, and two may choose the same. What is stopped by its id must
    have one that nobody else can have: hence `Call.request`, the request with another id.
    """

    _calls: dict[str, dict[str, Call]] = field(default_factory=dict)

    @contextmanager
    def call(
        self, caller: str, name: str, request: GenerationRequest, body: RequestBody, *, now: float
    ) -> Iterator[Call]:
        """Keep `request` among the calls of `caller` while the block runs."""
        own = msgspec.structs.replace(request, id=f"{request.id}-{secrets.token_hex(8)}")
        calls = self._calls.setdefault(caller, {})
        assert name not in calls, "the dialect has looked"
        calls[name] = call = Call(own, body, now)
        try:
            yield call
        finally:
            del calls[name]
            if not calls:
                del self._calls[caller]

    def of(self, caller: str) -> list[Call]:
        """Return what `caller` has running."""
        return list(self._calls.get(caller, {}).values())

    def find(self, caller: str, name: str) -> Call | None:
        """Return the call that `caller` has running under `name`, if there is one."""
        return self._calls.get(caller, {}).get(name)


def caller_of(http: Request) -> str:
    """Return who asks: the name of the API key; without keys what was sent as one, or the address.

    What was sent is not kept.
    """
    if key := key_of(http):
        return f"key {key}"
    if sent := http.headers.get("authorization", ""):
        return hashlib.sha256(sent.encode()).hexdigest()
    return http.client.host if http.client else ""
