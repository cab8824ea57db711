"""Which worker gets a picture: the one with the least to do. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Load:
    """What a worker has in hand: device-seconds, and the sizes of its pictures."""

    worker: int
    backlog_s: float
    sizes: frozenset[tuple[int, int]]


def choose(loads: Sequence[Load], *, size: tuple[int, int], saved_s: float) -> int:
    """Return the worker for a picture of `size`.

    A worker that has this size in hand already may be ahead by up to `saved_s`, the device-seconds that
    sharing its steps would save.
    """

    def effective_s(load: Load) -> tuple[float, int]:
        return load.backlog_s - (saved_s if size in load.sizes else 0.0), load.worker

    return min(loads, key=effective_s).worker
