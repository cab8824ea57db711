"""Who asks for which picture when: drawn from a seed, or read from a recorded trace."""

import csv
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from server.costs import Shape
from server.generation import Priority

STEPS: Final = 4


class Share(NamedTuple):
    """A part of the traffic: pictures of `side` x `side`."""

    side: int
    weight: float


Mix = Sequence[Share]


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


def parse_mix(text: str) -> Mix:
    """Read `512:40,768:30,1024:30`, sides and their parts of the traffic. Raises `ValueError`."""
    shares = []
    for part in text.split(","):
        side, colon, weight = part.partition(":")
        if not (colon and side.isdigit() and weight.replace(".", "", 1).isdigit()):
            raise ValueError(f"--mix {text!r}: expected SIDE:PART, separated by commas, found {part!r}")
        if int(side) % 16 or not 256 <= int(side) <= 1536:
            raise ValueError(f"--mix {text!r}: a side is a multiple of 16 from 256 to 1536, not {side}")
        shares.append(Share(int(side), float(weight)))
    return shares


def draw(
    seed: int,
    *,
    count: int,
    rate: float,
    mix: Mix,
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
    now = 0.0
    requests = []
    for _ in range(count):
        now += chance.gammavariate(1 / burstiness, burstiness / rate)
        (share,) = chance.choices(mix, [each.weight for each in mix])
        (key,) = chance.choices(names, keys)
        requests.append(Request(now, share.side, share.side, txt_rows=txt_rows, key=key))
    return requests


def read_trace(path: Path, *, txt_rows: int) -> list[Request]:
    """Read a CSV with a header: `arrived_s,width,height` and, where wanted, `steps`, `priority`, `key`,
    `deadline_s`. Raises `ValueError` for a line that is no request."""
    with path.open(newline="") as file:
        return sorted(_rows(csv.DictReader(file), path, txt_rows), key=lambda request: request.arrived_s)


def _rows(reader: "csv.DictReader[str]", path: Path, txt_rows: int) -> Iterator[Request]:
    known = {"arrived_s", "width", "height", "steps", "priority", "key", "deadline_s"}
    if unknown := set(reader.fieldnames or ()) - known:
        raise ValueError(
            f"{path}: unknown columns {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}"
        )
    for number, row in enumerate(reader, 2):
        try:
            yield Request(
                float(row["arrived_s"]),
                int(row["width"]),
                int(row["height"]),
                txt_rows=txt_rows,
                steps=int(row.get("steps") or STEPS),
                priority=Priority(row.get("priority") or Priority.NORMAL),
                key=row.get("key") or "",
                deadline_s=float(row["deadline_s"]) if row.get("deadline_s") else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
