"""What a caller has running, for dialects in which another request asks after it or stops it."""

import asyncio
import hashlib
import secrets
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import Request

from server.errors import Cancelled
from server.generation import GenerationRequest, GenerationResult
from server.http.body import RequestBody
from server.http.exchange import key_of


@dataclass(eq=False, slots=True)
class Call:
    """A request in hand, the body that it came from, and when it came, on the clock of its dialect."""

    request: GenerationRequest
    body: RequestBody
    began_s: float
    _work: "asyncio.Task[GenerationResult] | None" = None
    _stopped: bool = False

    async def run(self, work: Coroutine[Any, Any, GenerationResult]) -> GenerationResult:
        """Return what `work` does; raises `Cancelled` once it is stopped, however early that was."""
        self._work = asyncio.create_task(work)
        if self._stopped:
            self._work.cancel()
        try:
            return await self._work
        except asyncio.CancelledError:
            if self._stopped:
                raise Cancelled("the request was cancelled") from None
            raise

    def stop(self) -> None:
        """End the work, also if the engine has not heard of it yet."""
        self._stopped = True
        if self._work is not None:
            self._work.cancel()


@dataclass(slots=True)
class Running:
    """The calls in hand by caller, in the order in which they came; their names are the callers' own.

    The id of a request is a client's to choose, and two may choose the same. What is asked after by its id
    must have one that nobody else can have: hence `Call.request`, the request with another id.
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
