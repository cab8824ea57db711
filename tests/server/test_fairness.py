"""The clock of fair sharing, against what sharing means."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.fairness import FairClock, Share, weigh
from server.generation import Priority


def test_equals_are_due_when_both_are_done() -> None:
    clock = FairClock()
    first, second = (clock.join(key="", cost_s=2.0, weight=1.0) for _ in range(2))
    clock.advance(3.9)
    assert first.active
    assert second.active
    clock.advance(0.2)
    assert not first.active
    assert not second.active
    assert clock.now == first.due == second.due


def test_small_work_is_due_earlier_and_later_work_later() -> None:
    clock = FairClock()
    large = clock.join(key="", cost_s=10.0, weight=1.0)
    small = clock.join(key="", cost_s=1.0, weight=1.0)
    assert small.due < large.due
    clock.advance(19.0)  # the small one had one second of it
    newcomer = clock.join(key="", cost_s=1.0, weight=1.0)
    assert newcomer.due > large.due, "the large one has waited long enough"


def test_what_weighs_more_is_due_earlier_in_proportion() -> None:
    clock = FairClock()
    plain, heavy = (clock.join(key="", cost_s=1.0, weight=weight) for weight in (1.0, 4.0))
    assert plain.due == pytest.approx(4 * heavy.due)


def test_priority_and_size_decide_what_a_picture_weighs() -> None:
    high, normal, low = (weigh(priority, 1.0) for priority in (Priority.HIGH, Priority.NORMAL, Priority.LOW))
    assert high > normal > low
    assert normal < weigh(Priority.NORMAL, 16.0) < 16 * normal
    assert weigh(Priority.NORMAL, 0.0) > 0


def test_keys_weigh_the_same_whatever_they_have_in_hand() -> None:
    clock = FairClock()
    for _ in range(100):
        clock.join(key="crowd", cost_s=1.0, weight=1.0)
    weight_before = clock.weight
    lone = clock.join(key="lone", cost_s=1.0, weight=1.0)
    assert lone.weight == pytest.approx((100 + 1) / 2)
    assert clock.weight - weight_before == lone.weight
    assert clock.join(key="crowd", cost_s=1.0, weight=1.0).weight == pytest.approx(102 / 2 / 101)


def test_the_time_until_a_share_is_due_counts_everybody() -> None:
    clock = FairClock()
    for _ in range(3):
        clock.join(key="", cost_s=2.0, weight=1.0)
    assert clock.due_in_s(clock.join(key="", cost_s=2.0, weight=1.0)) == pytest.approx(8.0)
    assert clock.due_in_s(clock.join(key="", cost_s=2.0, weight=4.0)) == pytest.approx(0.5 * 8.0)


def test_one_that_leaves_takes_its_work_along() -> None:
    clock = FairClock()
    leaving, staying = (clock.join(key="", cost_s=2.0, weight=1.0) for _ in range(2))
    clock.advance(1.0)
    clock.leave(leaving, left_s=2.0)  # all of that second was spent on the one that stays
    assert (staying.due - clock.now) * staying.weight == pytest.approx(1.0)


events = st.one_of(
    st.tuples(
        st.just("join"), st.sampled_from(["a", "b"]), st.floats(0.01, 9.0), st.sampled_from([0.5, 8.0])
    ),
    st.tuples(st.sampled_from(["work", "leave"]), st.integers(0, 99), st.floats(0.0, 1.0), st.none()),
)


@given(st.lists(events, max_size=60))
def test_the_imagined_device_never_has_more_to_do_than_the_real_one(story: list[tuple[Any, ...]]) -> None:
    clock = FairClock()
    left: list[tuple[Share, float]] = []  # device-seconds that the real device has still to do

    for what, who, amount, weight in story:
        if what == "join":
            left.append((clock.join(key=who, cost_s=amount, weight=weight), amount))
        elif left:
            share, left_s = left.pop(who % len(left))
            if what == "leave":
                clock.leave(share, left_s=left_s)
            else:
                clock.advance(left_s * amount)
                left.append((share, left_s * (1 - amount)))
        imagined_s = sum((share.due - clock.now) * share.weight for share, _ in left if share.active)
        assert imagined_s <= sum(left_s for _, left_s in left) + 1e-6
    clock.advance(sum(left_s for _, left_s in left) + 1e-6)
    assert not any(share.active for share, _ in left)
    assert clock.weight == 0.0


def test_looking_ahead_is_what_advancing_would_come_to() -> None:
    for work_s in (0.0, 0.5, 3.0, 7.5, 100.0):
        clock = FairClock()
        for cost_s, weight in ((1.0, 1.0), (2.0, 4.0), (5.0, 1.0)):
            clock.join(key="", cost_s=cost_s, weight=weight)
        foreseen = clock.after(work_s)
        assert (clock.now, clock.weight) == (0.0, 6.0), "looking changes nothing"
        clock.advance(work_s)
        assert foreseen == pytest.approx((clock.now, clock.weight))
