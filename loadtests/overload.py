"""What becomes of a server that is asked for ten times what it can do: `python -m loadtests.overload`.

Goodput must stay, whoever is admitted must be served in time, whoever is not must be told so at once and when
to come again, memory must not grow, and when the crowd has left everything must soon be as before.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from loadtests.generator import offer
from loadtests.outcomes import Load, Outcome, quantile
from loadtests.report import keep, machine
from loadtests.servers import OURS, ROOT, Server, running
from loadtests.traffic import Arrival, Share, arrivals, poisson

RESULTS = ROOT / "loadtests/results/overload.csv"
SIDE = 256
OVERLOADED = 429
SEEN_ALONE = 8  # requests, one at a time
CROWD = 100
BACK_TO_NORMAL = 1.5  # of the time alone
GIVE_UP_S = 60.0  # a machine that others use as well may never be as it was


@dataclass(frozen=True, slots=True)
class Row:
    """One run; times in seconds, rates in pictures a second, memory in MB."""

    capacity: float
    factor: float
    seconds: float
    deadline_s: float
    requests: int
    goodput: float
    goodput_share: float
    admitted: int
    in_time_share: float
    refused: int
    refused_p99_s: float
    told_when_s: float
    was_when_s: float
    memory_before_mb: int
    memory_after_mb: int
    normal_after_s: float
    cpu: str
    cores: int
    commit: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a server, overload it, and print and keep what was seen."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.overload", description=__doc__)
    parser.add_argument("--factor", type=float, default=10.0, help="of the capacity that is measured first")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--deadline", type=float, default=4.0, help="seconds that each request allows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    with running(OURS) as server:
        row = overload(server, options.factor, options.seconds, options.deadline, random.Random(options.seed))
    keep([row], options.output)
    for name, value in asdict(row).items():
        print(f"{name:>18} {value}")
    return 0


def overload(server: Server, factor: float, seconds: float, deadline_s: float, rng: random.Random) -> Row:
    """Measure alone, then at capacity, then far above it, then how soon it is over."""
    alone_s = [_alone(server.url, rng) for _ in range(SEEN_ALONE)][2:]  # the first ones warm up
    capacity = _run(server.url, [_arrival(0.0, rng) for _ in range(24)]).answered
    before = server.memory_bytes
    mix = (Share(SIDE, SIDE, 1.0),)
    traffic = arrivals(poisson(factor * capacity, rng), mix, rng, until_s=seconds)
    body: dict[str, object] = {"deadline_ms": round(1000 * deadline_s)}
    outcomes = asyncio.run(offer(server.url, traffic, body=body))
    ended = time.monotonic()
    while not _alone(server.url, rng) <= BACK_TO_NORMAL * quantile(alone_s, 50):  # nan where it failed
        if time.monotonic() - ended > GIVE_UP_S:
            break
    normal_after_s = time.monotonic() - ended
    told, was = asyncio.run(_come_again(server.url, body, rng))
    load = Load.of(outcomes)
    refused = [outcome for outcome in outcomes if outcome.status == OVERLOADED]
    admitted = [outcome for outcome in outcomes if outcome.status != OVERLOADED]
    where = machine()
    return Row(
        capacity=round(capacity, 3),
        factor=factor,
        seconds=seconds,
        deadline_s=deadline_s,
        requests=len(outcomes),
        goodput=round(load.answered, 3),
        goodput_share=round(load.answered / capacity, 3),
        admitted=len(admitted),
        in_time_share=round(sum(_in_time(each, deadline_s) for each in admitted) / len(admitted), 4),
        refused=len(refused),
        refused_p99_s=round(quantile([each.done_s - each.sent_s for each in refused], 99), 4),
        told_when_s=round(told, 1),
        was_when_s=round(was, 1),
        memory_before_mb=before >> 20,
        memory_after_mb=server.memory_bytes >> 20,
        normal_after_s=round(normal_after_s, 1),
        cpu=str(where["cpu"]),
        cores=int(where["cores"]),
        commit=str(where["commit"]),
    )


def _in_time(outcome: Outcome, deadline_s: float) -> bool:
    return outcome.succeeded and outcome.done_s - outcome.sent_s <= deadline_s


def _alone(url: str, rng: random.Random) -> float:
    """Return the seconds of one request that has the server for itself."""
    return _run(url, [_arrival(0.0, rng)]).p50_s


def _run(url: str, traffic: Sequence[Arrival]) -> Load:
    return Load.of(asyncio.run(offer(url, traffic)))


def _arrival(at_s: float, rng: random.Random) -> Arrival:
    return Arrival(at_s, SIDE, SIDE, "a red circle", rng.getrandbits(32))


async def _come_again(url: str, body: dict[str, object], rng: random.Random) -> tuple[float, float]:
    """Fill the server at once; return when it says to come again, and when it does admit a request."""
    loop = asyncio.get_running_loop()
    told_s: float | None = None
    began = admitted_s = loop.time()
    async with (
        asyncio.TaskGroup() as crowd,
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client,
    ):
        crowd.create_task(offer(url, [_arrival(0.0, rng) for _ in range(CROWD)], body=body))
        while told_s is None or admitted_s < began:
            sent_s = loop.time()
            request = {"prompt": "a cat", "width": SIDE, "height": SIDE, "seed": rng.getrandbits(32), **body}
            answer = await client.post("/v1/generate", json=request)
            if answer.status_code != OVERLOADED:
                admitted_s = sent_s
            elif told_s is None:
                told_s, began = float(answer.headers["Retry-After"]), loop.time()
            await asyncio.sleep(0.05)
    return told_s, admitted_s - began


if __name__ == "__main__":
    sys.exit(main())
