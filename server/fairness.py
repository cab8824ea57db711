"""A clock of fair sharing: when would each picture be done if the device served all of them at once?

Pure. The batcher serves in the order of these dues, which finishes small work early, lets it overtake, and
still starves nobody: Friedman and Henderson, "Fairness and efficiency in web server protocols", SIGMETRICS
2003, with the weights of Parekh and Gallager, "A generalized processor sharing approach", ToN 1 (3), 1993.
"""

import heapq
import math
from dataclasses import dataclass, field
from typing import Final

from server.generation import Priority

CLASS_WEIGHT: Final = {Priority.HIGH: 16.0, Priority.NORMAL: 4.0, Priority.LOW: 1.0}
NOTHING_S: Final = 1e-9  # sums of floats do not meet
AGEING: Final = 0.3  # 0 is equal shares whatever the size, 1 is first come, first served


def weigh(priority: Priority, cost_s: float) -> float:
    """Return the weight of a picture: by its class, and by its cost, so that larger ones age faster.

    Not in proportion to the cost, or small ones would not overtake. `loadtests.simulate` chose the exponent:
    lower ones help the median and the slowdown, higher ones the 95th and 99th percentile.
    """
    return CLASS_WEIGHT[priority] * math.pow(cost_s, AGEING) if cost_s > 0 else CLASS_WEIGHT[priority]


@dataclass(eq=False, slots=True)
class Share:
    """A picture's part in the device; `asked` is its weight before the keys were made even."""

    key: str
    asked: float
    weight: float
    due: float
    active: bool = True  # it is not due yet


@dataclass(slots=True)
class FairClock:
    """Counts virtual time: it moves by one while the device does as much work as all weights together.

    A picture of weight w that costs c device-seconds is due c / w after it came. `advance` must be told of
    all work that is done, so that this imagined device and the real one are done at the same time.
    """

    now: float = 0.0
    weight: float = 0.0  # of all that are not due yet
    _dues: list[tuple[float, int, Share]] = field(default_factory=list)  # a heap
    _keys: dict[str, tuple[int, float]] = field(default_factory=dict)  # count and asked weight of each
    _joined: int = 0

    def join(self, *, key: str, cost_s: float, weight: float) -> Share:
        """Add a picture. Its weight is scaled so that each key weighs as much as any other."""
        count, asked = self._keys.get(key, (0, 0.0))
        self._keys[key] = count + 1, asked + weight
        even = sum(asked for _, asked in self._keys.values()) / len(self._keys)
        scaled = weight * (even / (asked + weight))
        share = Share(key, weight, scaled, self.now + cost_s / scaled)
        self.weight += scaled
        self._joined += 1
        heapq.heappush(self._dues, (share.due, self._joined, share))
        return share

    def due_in_s(self, share: Share) -> float:
        """Return the device-seconds of work until a share is due, if the weight in hand stays what it is."""
        return (share.due - self.now) * self.weight

    def after(self, work_s: float) -> tuple[float, float]:
        """Return `now` and `weight` as they would be after `work_s` device-seconds more."""
        now, weight = self.now, self.weight
        for due, _, share in sorted(self._dues):
            needed_s = (due - now) * weight
            if needed_s > work_s:
                return now + work_s / weight, weight
            now, weight, work_s = due, weight - share.weight, work_s - needed_s
        return now, 0.0

    def leave(self, share: Share, *, left_s: float) -> None:
        """Take out a picture that will not be finished, with `left_s` device-seconds of it not done.

        What the imagined device has done of it and the real one has not goes to the others: else work would
        be left over here for ever.
        """
        if share.active:
            left_s -= (share.due - self.now) * share.weight
            self._dues = [each for each in self._dues if each[2] is not share]
            heapq.heapify(self._dues)
            self._remove(share)
        self.advance(left_s)

    def advance(self, work_s: float) -> None:
        """Share `work_s` device-seconds among those that are not due yet."""
        while self._dues:
            due, _, share = self._dues[0]
            needed_s = (due - self.now) * self.weight
            if needed_s > work_s + NOTHING_S:
                self.now += max(0.0, work_s) / self.weight
                return
            self.now = due
            work_s -= needed_s
            heapq.heappop(self._dues)
            self._remove(share)

    def _remove(self, share: Share) -> None:
        share.active = False
        count, asked = self._keys.pop(share.key)
        if count > 1:
            self._keys[share.key] = count - 1, asked - share.asked
        self.weight = self.weight - share.weight if self._dues else 0.0  # floats do not sum to zero
