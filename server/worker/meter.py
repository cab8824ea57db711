"""Whose is the device? Its seconds, shared by the steps that run on it at once. Pure."""

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Meter:
    """Counts every second of a device once: of n steps that run at the same time each takes an n-th.

    Device-seconds add up to seconds, and what a step is found to cost hardly depends on what ran beside it.
    """

    _taken_s: dict[Hashable, float] = field(default_factory=dict)
    _now: float = 0.0

    def begin(self, lane: Hashable, now: float) -> None:
        """A step begins in a lane; `now` never goes back."""
        self._advance(now)
        self._taken_s[lane] = 0.0

    def end(self, lane: Hashable, now: float) -> float:
        """The step in a lane ends; return the device-seconds that it took."""
        self._advance(now)
        return self._taken_s.pop(lane)

    def _advance(self, now: float) -> None:
        assert now >= self._now or not self._taken_s, "steps are told of in the order in which they happen"
        for lane in self._taken_s:
            self._taken_s[lane] += (now - self._now) / len(self._taken_s)
        self._now = now
