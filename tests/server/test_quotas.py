"""Limits of a key on an imagined clock: what is let in, what is refused, and when to come back."""

from typing import Any

import pytest

from server.errors import QuotaExceeded, RateLimited
from server.keys import Key
from server.quotas import DAY_S, Quotas

MIDNIGHT = 20_000 * DAY_S
NOON = MIDNIGHT + DAY_S / 2


def key(name: str = "alice", **limits: Any) -> Key:
    return Key(name=name, hash="sha256:" + "0" * 64, **limits)


def entered(quotas: Quotas, wanted: Key, now: float) -> bool:
    """Let a request in and out again, if it may."""
    try:
        quotas.enter(wanted, now)
    except RateLimited:
        return False
    quotas.leave(wanted.name)
    return True


def test_without_limits_nothing_is_refused() -> None:
    quotas = Quotas()
    for _ in range(1000):
        quotas.enter(key(), NOON)
    quotas.charge("alice", 1e9, NOON)
    quotas.enter(key(), NOON)
    assert quotas.standings(key(), NOON) == []


def test_what_was_used_before_a_restart_takes_no_requests_of_this_minute() -> None:
    earlier, quotas, limited = Quotas(), Quotas(), key(requests_per_minute=2, device_seconds_per_day=9.0)
    earlier.charge("alice", 1.0, NOON)
    quotas.take_up(earlier.today(NOON), NOON)
    assert [entered(quotas, limited, NOON) for _ in range(3)] == [True, True, False]


def test_a_minutes_requests_may_come_at_once_and_then_steadily() -> None:
    quotas, limited = Quotas(), key(requests_per_minute=30)
    assert sum(entered(quotas, limited, NOON) for _ in range(50)) == 30
    with pytest.raises(RateLimited, match="30 requests a minute") as caught:
        quotas.enter(limited, NOON)
    assert caught.value.retry_after_s == pytest.approx(2.0)
    later = [entered(quotas, limited, NOON + 0.5 * step) for step in range(1, 121)]
    assert sum(later) == 30, "one every two seconds of the next minute"


def test_a_check_refuses_what_would_not_be_let_in_and_counts_nothing() -> None:
    quotas, limited = Quotas(), key(requests_per_minute=2, concurrent_requests=1)
    for _ in range(5):
        quotas.check(limited, NOON)
    quotas.enter(limited, NOON)
    with pytest.raises(RateLimited, match="1 at once"):
        quotas.check(limited, NOON)
    quotas.leave("alice")
    assert entered(quotas, limited, NOON)
    with pytest.raises(RateLimited, match="2 requests a minute"):
        quotas.check(limited, NOON)


@pytest.mark.parametrize("per_minute", [1, 7, 60, 600])
def test_who_comes_back_when_told_is_let_in(per_minute: int) -> None:
    quotas, limited, now = Quotas(), key(requests_per_minute=per_minute), NOON
    for _ in range(3 * per_minute):
        if not entered(quotas, limited, now):
            with pytest.raises(RateLimited) as caught:
                quotas.enter(limited, now)
            wait_s = caught.value.retry_after_s or 0.0
            assert not entered(quotas, limited, now + 0.9 * wait_s)
            now += wait_s + 1e-6  # floats do not meet
            assert entered(quotas, limited, now)


def test_a_bucket_never_holds_more_than_a_minute() -> None:
    quotas, limited = Quotas(), key(requests_per_minute=3)
    assert entered(quotas, limited, NOON)
    assert sum(entered(quotas, limited, NOON + 3600) for _ in range(10)) == 3


def test_a_clock_that_is_set_back_gives_and_takes_nothing() -> None:
    quotas, limited = Quotas(), key(requests_per_minute=60)
    for _ in range(60):
        assert entered(quotas, limited, NOON)
    assert not entered(quotas, limited, NOON - 100)
    assert entered(quotas, limited, NOON - 98.9)


def test_no_more_than_so_many_at_once() -> None:
    quotas, limited = Quotas(), key(concurrent_requests=2)
    quotas.enter(limited, NOON)
    quotas.enter(limited, NOON)
    with pytest.raises(RateLimited, match="2 requests under way; allowed: 2 at once") as caught:
        quotas.enter(limited, NOON)
    assert caught.value.retry_after_s == 1.0
    quotas.leave("alice")
    quotas.enter(limited, NOON)


def test_what_is_refused_costs_nothing() -> None:
    quotas, limited = Quotas(), key(concurrent_requests=1, requests_per_minute=2)
    quotas.enter(limited, NOON)
    for _ in range(5):
        with pytest.raises(RateLimited, match="at once"):
            quotas.enter(limited, NOON)
    quotas.leave("alice")
    quotas.enter(limited, NOON)


def test_a_day_of_the_device_ends_at_midnight() -> None:
    quotas, limited = Quotas(), key(device_seconds_per_day=10.0)
    quotas.enter(limited, NOON)
    quotas.enter(limited, NOON)
    quotas.charge("alice", 9.9, NOON)
    quotas.enter(limited, NOON)
    quotas.charge("alice", 5.0, NOON)
    with pytest.raises(QuotaExceeded, match=r"14\.9 device-seconds today; allowed: 10 a day") as caught:
        quotas.enter(limited, NOON + 60)
    assert caught.value.retry_after_s == DAY_S / 2 - 60
    assert not caught.value.retryable, "not within what a client would wait"
    quotas.enter(limited, MIDNIGHT + DAY_S)


def test_what_ends_after_midnight_counts_for_the_new_day() -> None:
    quotas, limited = Quotas(), key(device_seconds_per_day=10.0)
    quotas.enter(limited, NOON)
    quotas.charge("alice", 11.0, MIDNIGHT + DAY_S + 1)
    with pytest.raises(QuotaExceeded):
        quotas.enter(limited, MIDNIGHT + DAY_S + 2)


def test_keys_do_not_share_their_limits() -> None:
    quotas, alice, bob = Quotas(), key(concurrent_requests=1), key("bob", concurrent_requests=1)
    quotas.enter(alice, NOON)
    quotas.enter(bob, NOON)


def test_a_changed_limit_holds_from_the_next_request_on() -> None:
    quotas = Quotas()
    assert sum(entered(quotas, key(requests_per_minute=10), NOON) for _ in range(5)) == 5
    assert sum(entered(quotas, key(requests_per_minute=2), NOON) for _ in range(5)) == 2
    assert entered(quotas, key(), NOON)


def test_what_is_left_is_told() -> None:
    quotas, limited = Quotas(), key(requests_per_minute=2, device_seconds_per_day=10.0)
    quotas.enter(limited, NOON)
    quotas.charge("alice", 4.0, NOON)
    requests, device = quotas.standings(limited, NOON)
    assert (requests.name, requests.limit, requests.window_s) == ("requests", 2, 60)
    assert (requests.left, requests.reset_s) == (1.0, 0.0)
    assert (device.name, device.limit, device.window_s) == ("device-seconds", 10.0, DAY_S)
    assert (device.left, device.reset_s) == (6.0, DAY_S / 2)
    quotas.enter(limited, NOON)
    assert quotas.standings(limited, NOON + 15)[0].reset_s == pytest.approx(15.0)
