"""What users send and when: arrivals that do not wait for answers, drawn from a seed or read from a file."""

import csv
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

PROMPTS = (
    "a red circle on a blue background",
    "two green stars on a white background",
    "a yellow moon above a house at night",
    "a cat in a garden",
    "a boat on the sea at sunset",
    "three orange flowers in a meadow",
)
SIDES = range(256, 1537, 16)


@dataclass(frozen=True, slots=True)
class Share:
    """A size in pixels and how often it is asked for, relative to the others."""

    width: int
    height: int
    weight: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, `at_s` seconds after the beginning."""

    at_s: float
    width: int
    height: int
    prompt: str
    seed: int


def parse_mix(text: str) -> tuple[Share, ...]:
    """Read `512:40,768x512:30`: sides or width x height, and a weight each. Raises `ValueError`."""
    shares = []
    for part in text.split(","):
        size, _, weight = part.partition(":")
        width, _, height = size.partition("x")
        try:
            share = Share(int(width), int(height or width), float(weight or 1))
        except ValueError:
            raise ValueError(f"mix {part!r}; allowed: 512:40 or 768x512:30, separated by commas") from None
        if share.width not in SIDES or share.height not in SIDES or share.weight <= 0:
            raise ValueError(
                f"mix {part!r}; allowed: multiples of 16 from {SIDES[0]} to {SIDES[-1]}, weights above 0"
            )
        shares.append(share)
    return tuple(shares)


def poisson(rate: float, rng: random.Random) -> Iterator[float]:
    """Yield the times of independent arrivals, `rate` a second, without end."""
    return bursty(rate, rng, variation=1.0)


def bursty(rate: float, rng: random.Random, *, variation: float) -> Iterator[float]:
    """Yield times whose gaps are gamma distributed with this coefficient of variation; 1 is Poisson."""
    shape = variation**-2
    at_s = 0.0
    while True:
        at_s += rng.gammavariate(shape, 1 / (rate * shape))
        yield at_s


def arrivals(
    times: Iterable[float], mix: Sequence[Share], rng: random.Random, *, until_s: float
) -> list[Arrival]:
    """Give every time before `until_s` a size, a prompt and a seed of its own."""
    weights = [share.weight for share in mix]
    made = []
    for at_s in takewhile(lambda at_s: at_s < until_s, times):
        (share,) = rng.choices(mix, weights)
        made.append(Arrival(at_s, share.width, share.height, rng.choice(PROMPTS), rng.getrandbits(32)))
    return made


def recorded(path: Path, rng: random.Random) -> list[Arrival]:
    """Read a trace: CSV with `arrived_s`, `width`, `height` and, if there, `prompt` and `seed`."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    made = []
    for number, row in enumerate(rows, start=2):
        try:
            made.append(
                Arrival(
                    at_s=float(row["arrived_s"]),
                    width=int(row["width"]),
                    height=int(row["height"]),
                    prompt=row.get("prompt") or rng.choice(PROMPTS),
                    seed=int(row.get("seed") or rng.getrandbits(32)),
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            allowed = "numbers arrived_s, width, height"
            raise ValueError(f"{path}, line {number}: {row}; allowed: {allowed}") from error
    return sorted(made, key=lambda arrival: arrival.at_s)
