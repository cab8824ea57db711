"""What was used last, within a bound in bytes: the store behind finished pictures and kept answers."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

ENTRY_BYTES: Final = 1 << 10  # what an entry takes beside its data; tracemalloc says 0.65 KiB of a picture

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Lru(Generic[Key, Value]):
    """Keeps values of at most `limit_bytes` together, the least recently used out first. 0 keeps nothing."""

    def __init__(self, limit_bytes: int, *, size_of: Callable[[Value], int]) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._size_of = size_of
        self._kept: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Value | None:
        """Return what was put under `key`, which is now the last to leave."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: Key, value: Value) -> None:
        """Keep `value` in place of what was there; one that alone is over the bound is not kept."""
        self.drop(key)
        size_bytes = self._weigh(value)
        if size_bytes > self.limit_bytes:
            return
        self._kept[key] = value
        self.size_bytes += size_bytes
        while self.size_bytes > self.limit_bytes:
            self.drop(next(iter(self._kept)))

    def drop(self, key: Key) -> None:
        """Forget `key`, if it is there."""
        if key in self._kept:
            self.size_bytes -= self._weigh(self._kept.pop(key))

    def _weigh(self, value: Value) -> int:
        return ENTRY_BYTES + self._size_of(value)
