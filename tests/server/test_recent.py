"""What the server remembers of the latest requests and steps: little, and of a fixed size."""

import pytest

from server.costs import StepKind
from server.protocol import Stepped
from server.recent import WINDOW, Latency, Recent, Steps


def step(kind: StepKind, images: int, efficiency: float | None) -> Stepped:
    return Stepped(kind=kind, lane=0, images=images, tokens=256 * images, seconds=0.5, efficiency=efficiency)


def test_nothing_is_said_of_what_has_not_been() -> None:
    recent = Recent()
    assert (recent.requests(), recent.latencies(), recent.steps()) == (0, {}, None)


def test_latencies_are_of_the_requests_that_had_the_stage() -> None:
    recent = Recent()
    for number in range(101):
        recent.request({"total": float(number)})
    recent.request({"denoise": 7.0})
    assert recent.requests() == 102
    assert recent.latencies() == {"total": Latency(50.0, 95.0), "denoise": Latency(7.0, 7.0)}


def test_steps_are_averaged_and_others_than_denoising_are_not_steps() -> None:
    recent = Recent()
    recent.step(step(StepKind.DENOISE, 1, 0.5))
    recent.step(step(StepKind.DENOISE, 3, 0.9))
    recent.step(step(StepKind.DECODE, 9, None))
    assert recent.steps() == Steps(steps=2, images=2, tokens=512, seconds=0.5, efficiency=pytest.approx(0.7))


def test_what_is_old_is_forgotten() -> None:
    recent = Recent()
    for number in range(3 * WINDOW):
        recent.request({"total": float(number >= 2 * WINDOW)})
        recent.step(step(StepKind.DENOISE, 1 + (number >= 2 * WINDOW), 1.0))
    assert recent.requests() == WINDOW
    assert recent.latencies() == {"total": Latency(1.0, 1.0)}
    steps = recent.steps()
    assert steps is not None
    assert (steps.steps, steps.images) == (WINDOW, 2.0)
