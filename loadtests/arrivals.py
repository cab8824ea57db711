"""Requests as a simulation needs them: drawn from a seed, or read from a recorded trace."""

import csv
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from loadtests.traffic import SIDES, Share, bursty
from server.costs import Shape
from server.generation import Priority

STEPS: Final = 4


@dataclass(frozen=True, slots=True)
class Request:
    """One picture. `deadline_s` is the time it is given from its arrival."""

    arrived_s: float
    width: int
    height: int
    steps: int = STEPS
    txt_rows: int = 0
    priority: Priority = Priority.NORMAL
    key: str = ""
    deadline_s: float | None = None

    @property
    def shape(self) -> Shape:
        return Shape(self.width, self.height, self.txt_rows)


def draw(
    seed: int,
    *,
    count: int,
    rate: float,
    mix: Sequence[Share],
    burstiness: float,
    keys: Sequence[float],
    txt_rows: int,
) -> list[Request]:
    """Draw `count` requests at `rate` a second.

    Gaps between arrivals are gamma distributed with the squared coefficient of variation `burstiness`: 1 is
    a Poisson process, more comes in bursts. `keys` are the parts of the traffic that each key sends.
    """
    chance = random.Random(seed)
    names = [f"key {number}" for number in range(len(keys))]
    requests = []
    for now in islice(bursty(rate, chance, variation=burstiness**0.5), count):
        (share,) = chance.choices(mix, [each.weight for each in mix])
        (key,) = chance.choices(names, keys)
        requests.append(Request(now, share.width, share.height, txt_rows=txt_rows, key=key))
    return requests


def read_trace(path: Path, *, txt_rows: int) -> list[Request]:
    """Read a CSV with a header: `arrived_s,width,height` and, where wanted, `steps`, `priority`, `key`,
    `deadline_s`. Raises `ValueError` for a line that is no request."""
    with path.open(newline="") as file:
        return sorted(_rows(csv.DictReader(file), path, txt_rows), key=lambda request: request.arrived_s)


def _rows(reader: "csv.DictReader[str]", path: Path, txt_rows: int) -> Iterator[Request]:
    known = {"arrived_s", "width", "height", "steps", "priority", "key", "deadline_s", "prompt", "seed"}
    if unknown := set(reader.fieldnames or ()) - known:
        raise ValueError(
            f"{path}: unknown columns {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    for number, row in enumerate(reader, 2):
        try:
            request = Request(
                float(row["arrived_s"]),
                int(row["width"]),
                int(row["height"]),
                txt_rows=txt_rows,
                steps=int(row.get("steps") or STEPS),
                priority=Priority(row.get("priority") or Priority.NORMAL),
                key=row.get("key") or "",
                deadline_s=float(row["deadline_s"]) if row.get("deadline_s") else None,
            )
            _check(request)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        yield request


def _check(request: Request) -> None:
    """Raise `ValueError` for what a server would refuse, or could never finish."""
    if not math.isfinite(request.arrived_s):
        raise ValueError(f"arrived_s {request.arrived_s}; allowed: seconds")
    for name, side in (("width", request.width), ("height", request.height)):
        if side not in SIDES:
            raise ValueError(f"{name} {side}; allowed: multiples of 16 from {SIDES[0]} to {SIDES[-1]}")
    if request.steps < 1:
        raise ValueError(f"steps {request.steps}; allowed: 1 and more")
    if request.deadline_s is not None and not request.deadline_s > 0:
        raise ValueError(f"deadline_s {request.deadline_s}; allowed: seconds above 0")
