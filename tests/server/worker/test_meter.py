"""Seconds of a device are counted once, however many steps run at the same time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.worker.meter import Meter


def test_a_step_alone_takes_all_of_its_seconds() -> None:
    meter = Meter()
    meter.begin("denoise", 10.0)
    assert meter.end("denoise", 12.0) == 2.0


def test_steps_at_the_same_time_share_the_seconds() -> None:
    meter = Meter()
    meter.begin("denoise", 0.0)
    meter.begin("decode", 2.0)
    assert meter.end("decode", 5.0) == 1.5
    assert meter.end("denoise", 6.0) == 2.0 + 1.5 + 1.0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 10))))
def test_device_seconds_add_up_to_the_seconds_in_which_anything_ran(turns: list[tuple[str, float]]) -> None:
    meter, running, now, busy_s, taken_s = Meter(), set[str](), 0.0, 0.0, 0.0
    for lane, seconds in [*turns, *((lane, 1.0) for lane in "abc")]:
        now += seconds
        busy_s += seconds if running else 0.0
        if lane in running:
            taken_s += meter.end(lane, now)
            running.remove(lane)
        else:
            meter.begin(lane, now)
            running.add(lane)
    for lane in running:
        taken_s += meter.end(lane, now)
    assert taken_s == pytest.approx(busy_s)
