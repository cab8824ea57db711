"""What a key may use: requests a minute, requests at once, device-seconds a day.

Pure: time comes in as an argument, in Unix seconds, so that days are those of UTC. What was used is counted
by the names of keys, so that a change of the keys file does not begin anew.
"""

import math
from dataclasses import dataclass, field
from typing import Final

import msgspec

from server.errors import QuotaExceeded, RateLimited
from server.keys import Key

DAY_S: Final = 86_400.0
MINUTE_S: Final = 60.0
SOON_S: Final = 1.0  # when a request of the same key will have ended is not known here


@dataclass(slots=True)
class _Use:
    """`tokens` are the requests that may come at once, as of `at_s`; `device_s` is that of `day`."""

    tokens: float
    at_s: float
    day: int
    running: int = 0
    device_s: float = 0.0


class Today(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The device-seconds that keys have used of a day, which is counted from 1 January 1970."""

    day: int
    device_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Standing:
    """What is left of one limit, and the seconds until there is more (RFC draft ratelimit-headers)."""

    name: str
    limit: float
    window_s: float
    left: float
    reset_s: float


@dataclass(slots=True)
class Quotas:
    """The use of every key. A request `enter`s and `leave`s; what its pictures took is `charge`d."""

    _uses: dict[str, _Use] = field(default_factory=dict)

    def enter(self, key: Key, now: float) -> None:
        """Count a request in; raises `RateLimited` or `QuotaExceeded`, and then it costs nothing."""
        self.check(key, now)
        use = self._use(key, now)
        if key.requests_per_minute is not None:
            use.tokens -= 1
        use.running += 1

    def check(self, key: Key, now: float) -> None:
        """Raise what `enter` would raise; counts nothing."""
        use = self._use(key, now)
        per_day, most, per_minute = _limits(key)
        if per_day is not None and use.device_s >= per_day:
            raise QuotaExceeded(
                f"this key has used {use.device_s:.1f} device-seconds today; allowed: {per_day:g} a day, "
                "which begins at 00:00 UTC",
                retry_after_s=_until_tomorrow_s(now),
            )
        if most is not None and use.running >= most:
            raise RateLimited(
                f"this key has {use.running} requests under way; allowed: {most} at once",
                retry_after_s=SOON_S,
            )
        if per_minute is not None and use.tokens < 1:
            wait_s = (1 - use.tokens) * MINUTE_S / per_minute
            raise RateLimited(
                f"this key asks too often; allowed: {per_minute} requests a minute", retry_after_s=wait_s
            )

    def enter_again(self, name: str, now: float) -> None:
        """Count in a request that an earlier process let in; it is not refused any more."""
        self._uses.setdefault(name, _unused(now)).running += 1

    def leave(self, name: str) -> None:
        """Count a request out that entered, however it ended."""
        self._uses[name].running -= 1

    def charge(self, name: str, device_s: float, now: float) -> None:
        """Count what a picture took. One under way is not counted yet, so that a day may end overdrawn."""
        use = self._uses.setdefault(name, _unused(now))
        _begin_day(use, now)
        use.device_s += device_s

    def today(self, now: float) -> Today:
        """Return what was used of this day, to be kept over a restart."""
        day = _day(now)
        used = {name: use.device_s for name, use in self._uses.items() if use.day == day and use.device_s}
        return Today(day=day, device_s=used)

    def take_up(self, today: Today, now: float) -> None:
        """Charge what an earlier process had counted, if it is still the same day."""
        if today.day == _day(now):
            for name, device_s in today.device_s.items():
                self.charge(name, device_s, now)

    def standings(self, key: Key, now: float) -> list[Standing]:
        """Return where a key stands with each of its limits over time."""
        use = self._use(key, now)
        found = []
        if per_minute := key.requests_per_minute:
            reset_s = max(0.0, 1 - use.tokens) * MINUTE_S / per_minute
            found.append(Standing("requests", per_minute, MINUTE_S, use.tokens, reset_s))
        if per_day := key.device_seconds_per_day:
            left_s = max(0.0, per_day - use.device_s)
            found.append(Standing("device-seconds", per_day, DAY_S, left_s, _until_tomorrow_s(now)))
        return found

    def _use(self, key: Key, now: float) -> _Use:
        """Return a key's use as of now: its bucket holds a minute's requests and is filled steadily."""
        full = float(key.requests_per_minute or 0)
        use = self._uses.setdefault(key.name, _unused(now))
        passed_s = max(0.0, now - use.at_s)  # clocks are set back
        use.tokens = min(full, use.tokens + passed_s * full / MINUTE_S)
        use.at_s = now
        _begin_day(use, now)
        return use


def _unused(now: float) -> _Use:
    """As of now, with every request that the limit allows, which is not known here."""
    return _Use(math.inf, now, _day(now))


def _limits(key: Key) -> tuple[float | None, int | None, int | None]:
    return key.device_seconds_per_day, key.concurrent_requests, key.requests_per_minute


def _begin_day(use: _Use, now: float) -> None:
    if use.day != _day(now):
        use.day, use.device_s = _day(now), 0.0


def _day(now: float) -> int:
    return int(now // DAY_S)


def _until_tomorrow_s(now: float) -> float:
    return DAY_S - now % DAY_S
