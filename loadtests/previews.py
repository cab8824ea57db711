"""What previews cost: `python -m loadtests.previews`.

The same picture is asked for in turn without and with three previews, from one client or several at once, as
events in both cases, so that nothing but the previews differs. More than a tenth is too much.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import httpx

from loadtests.outcomes import quantile
from loadtests.report import keep, machine
from loadtests.servers import OURS, ROOT, running

RESULTS: Final = ROOT / "loadtests/results/previews.csv"
PREVIEWS: Final = 3
MOST: Final = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """One run: seconds until the picture is there, and how many of the previews came in time."""

    side: int
    clients: int
    rounds: int
    without_p50_s: float
    with_p50_s: float
    price: float
    shown: float
    cpu: str
    cores: int
    commit: str


@dataclass(frozen=True, slots=True)
class Streamed:
    """What came of one request."""

    seconds: float
    previews: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a server, ask it for pictures, and print and keep what previews cost; 1 if it is too much."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.previews", description=__doc__)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    with running((*OURS, "--max-backlog-s", "3600", "--image-cache-mb", "0")) as server:
        row = asyncio.run(compare(server.url, options.side, options.clients, options.rounds))
    keep([row], options.output)
    for name, value in asdict(row).items():
        print(f"{name:>15} {value}")
    return int(row.price > MOST)


async def compare(url: str, side: int, clients: int, rounds: int) -> Row:
    """Ask in turn without previews and with them, after two rounds that are not counted."""
    plain: list[Streamed] = []
    shown: list[Streamed] = []
    async with httpx.AsyncClient(base_url=url, timeout=600, trust_env=False) as client:
        for number in range(-2, rounds):
            order = ((0, plain), (PREVIEWS, shown))
            for previews, found in order if number % 2 else reversed(order):
                asked = (_stream(client, side, previews, seed=n) for n in range(clients))
                answers = await asyncio.gather(*asked)
                if number >= 0:
                    found.extend(answers)
    without_s, with_s = (quantile([each.seconds for each in kind], 50) for kind in (plain, shown))
    where = machine()
    return Row(
        side=side,
        clients=clients,
        rounds=rounds,
        without_p50_s=round(without_s, 4),
        with_p50_s=round(with_s, 4),
        price=round(with_s / without_s - 1, 4),
        shown=round(sum(each.previews for each in shown) / (PREVIEWS * len(shown)), 3),
        cpu=str(where["cpu"]),
        cores=int(where["cores"]),
        commit=str(where["commit"]),
    )


async def _stream(client: httpx.AsyncClient, side: int, previews: int, *, seed: int) -> Streamed:
    body = {"prompt": "a red circle", "width": side, "height": side, "seed": seed, "previews": previews}
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    began = time.perf_counter()
    names: list[str] = []
    async with client.stream("POST", "/v1/generate", json=body, headers=headers) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
    if names[-1:] != ["done"]:
        raise RuntimeError(f"the stream ended with {names[-1:]}")
    return Streamed(time.perf_counter() - began, names.count("preview"))


if __name__ == "__main__":
    sys.exit(main())
