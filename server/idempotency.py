"""One answer for all requests with one idempotency key: while it is being made, and for a day after.

Keys are the HTTP edge's; what is kept is the finished answer with its pictures, also those of drawn seeds,
so that a retry gets the same bytes. A failure is not kept: whoever comes again gets another try.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Final

from server.errors import KeyReused
from server.generation import GenerationResult
from server.lru import Lru
from server.metrics import Metrics

LIFETIME_S: Final = 24 * 3600.0
HEADER: Final = "idempotency-key"


@dataclass(frozen=True, slots=True)
class Answer:
    """`replayed` when it was made for an earlier request with the same key."""

    result: GenerationResult
    replayed: bool


@dataclass(frozen=True, slots=True)
class _Kept:
    fingerprint: bytes
    result: GenerationResult
    until_s: float


@dataclass(eq=False, slots=True)
class _Running:
    fingerprint: bytes
    work: "asyncio.Task[GenerationResult]"
    waiting: int = 0


class Answers:
    """Keeps answers of at most `limit_bytes` together, the least recently used out first.

    `clock` counts seconds and never goes back.
    """

    def __init__(
        self, limit_bytes: int, *, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kept: Lru[Hashable, _Kept] = Lru(limit_bytes, size_of=_size_bytes)
        self._running: dict[Hashable, _Running] = {}
        self._metrics = metrics
        self._clock = clock

    async def once(
        self, key: Hashable, fingerprint: bytes, make: Callable[[], Awaitable[GenerationResult]]
    ) -> Answer:
        """Return the answer that belongs to `key`; the first that asks for it has it made.

        Cancelling this call cancels the making only when nobody else waits for it. Raises what `make`
        raises, and `KeyReused` when `key` came with another `fingerprint` before.
        """
        known = self._find(key)
        if known is not None and known.fingerprint != fingerprint:
            raise KeyReused(
                f"{HEADER} was used for another request within the last {LIFETIME_S / 3600:g} hours; "
                "allowed: a key of its own for every request, and the same body for a retry",
                field=HEADER,
            )
        if isinstance(known, _Kept):
            self._metrics.replayed()
            return Answer(known.result, replayed=True)
        result = await self._wait(key, known or self._begin(key, fingerprint, make))
        if known is not None:
            self._metrics.replayed()
        return Answer(result, replayed=known is not None)

    def _find(self, key: Hashable) -> _Kept | _Running | None:
        kept = self._kept.get(key)
        if kept is not None and self._clock() >= kept.until_s:
            self._kept.drop(key)
            kept = None
        return kept or self._running.get(key)

    def _begin(
        self, key: Hashable, fingerprint: bytes, make: Callable[[], Awaitable[GenerationResult]]
    ) -> _Running:
        running = _Running(fingerprint, asyncio.create_task(self._make(key, fingerprint, make)))
        self._running[key] = running
        return running

    async def _make(
        self, key: Hashable, fingerprint: bytes, make: Callable[[], Awaitable[GenerationResult]]
    ) -> GenerationResult:
        try:
            result = await make()
            self._kept.put(key, _Kept(fingerprint, result, self._clock() + LIFETIME_S))
            return result
        finally:
            running = self._running.get(key)
            if running is not None and running.work is asyncio.current_task():
                del self._running[key]

    async def _wait(self, key: Hashable, running: _Running) -> GenerationResult:
        running.waiting += 1
        try:
            return await asyncio.shield(running.work)
        finally:
            running.waiting -= 1
            if running.waiting == 0 and not running.work.done():
                del self._running[key]  # who comes now has it made anew
                running.work.cancel()
                await asyncio.wait([running.work])


def _size_bytes(kept: _Kept) -> int:
    return sum(len(image.data) for image in kept.result.images)
