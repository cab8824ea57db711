"""Whoever sent a request: the holder of a key, or anybody where the server has no keys.

All dialects meet here, and so do requests that are answered later: `sign` says in whose name a request runs
and how urgent it may be, `entering` counts it against the key's limits. What pictures took the engine tells.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from server.errors import Forbidden
from server.generation import URGENCY, GenerationRequest
from server.keys import Key
from server.quotas import Quotas, Standing


@dataclass(frozen=True, slots=True)
class Caller:
    """`key` is None where the server has no keys: then nothing is limited, and all share one name."""

    key: Key | None
    quotas: Quotas
    clock: Callable[[], float] = time.time

    @property
    def name(self) -> str:
        """The key's name: what keys share the device by, and what logs show."""
        return "" if self.key is None else self.key.name

    def check_admin(self) -> None:
        """Raise `Forbidden` unless the caller may change what is served."""
        if self.key is not None and not self.key.admin:
            raise Forbidden("this key may not change what is served; allowed: keys with admin = true")

    def sign(self, request: GenerationRequest) -> GenerationRequest:
        """Return the request in this caller's name and class; raises `Forbidden`.

        Who asks for no class gets that of the key. Less urgent may be asked for, more urgent may not.
        """
        if self.key is None:
            return request
        first = URGENCY.index(self.key.priority)
        asked = request.priority or self.key.priority
        if asked not in URGENCY[first:]:
            allowed = " or ".join(f'"{each}"' for each in URGENCY[first:])
            raise Forbidden(f'priority is "{asked}"; allowed for this key: {allowed}', field="priority")
        return msgspec.structs.replace(request, key=self.key.name, priority=asked)

    def check_limits(self) -> None:
        """Raise what `entering` would raise, before anything is done for a request; counts nothing."""
        if self.key is not None:
            self.quotas.check(self.key, self.clock())

    @contextlib.contextmanager
    def entering(self) -> Iterator[None]:
        """Count one request while it lasts; raises `RateLimited` or `QuotaExceeded`."""
        if self.key is None:
            yield
            return
        self.quotas.enter(self.key, self.clock())
        try:
            yield
        finally:
            self.quotas.leave(self.key.name)

    def standings(self) -> list[Standing]:
        """Return what is left of each limit over time."""
        return [] if self.key is None else self.quotas.standings(self.key, self.clock())
