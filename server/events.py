"""What the engine tells of a request while it runs, to whoever listens: each event is about one picture.

In this order: its `Forecast`, `Advanced` after each denoising step, a `Preview` here and there, and the
`Image`. A picture that is there already has its `Image` only; one whose worker died takes its steps again.
"""

from collections.abc import Callable
from dataclasses import dataclass

from server.generation import Forecast, Image, Preview


@dataclass(frozen=True, slots=True)
class Advanced:
    """So many of its denoising steps are done."""

    step: int
    steps: int


Event = Forecast | Advanced | Preview | Image
Hear = Callable[[Event], None]
Listener = Callable[[int, Event], None]  # called with the number of the picture in its request, from 0


def ignore(event: Event) -> None:
    """Hear of a picture and do nothing."""


def ignore_all(number: int, event: Event) -> None:
    """Listen to a request and do nothing."""
