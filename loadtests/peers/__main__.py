"""The same checkpoint, machine and traffic in this server and in its peers: `python -m loadtests.peers`.

`make .venv/peers.stamp` installs them. Each server runs alone, in processes of its own, and gets every kind
of traffic: first everything at once, which shows its capacity, then at 70 % of what the best peer can.
"""

import argparse
import asyncio
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from loadtests import servers
from loadtests.generator import offer
from loadtests.outcomes import Load
from loadtests.report import keep, machine
from loadtests.servers import ROOT, running
from loadtests.traffic import Arrival, arrivals, bursty, parse_mix

RESULTS = ROOT / "loadtests/results/peers.csv"
OURS = "schnell-server"
# A backlog bound far away: peers have none, and refusals would look like speed; nor do peers keep pictures.
SERVERS: dict[str, tuple[str, ...]] = {
    OURS: (*servers.OURS, "--max-backlog-s", "3600", "--image-cache-mb", "0", "--model"),
    "fastapi": ("-m", "loadtests.peers.fastapi_lock", "{port}"),
    "litserve": ("-m", "loadtests.peers.litserve_batch", "{port}"),
    "ray": ("-m", "loadtests.peers.ray_batch", "{port}"),
}
SHARE = 0.7


@dataclass(frozen=True, slots=True)
class Traffic:
    """A kind of traffic: sizes, and how its arrivals vary (1 is Poisson)."""

    name: str
    mix: str
    variation: float


KINDS = (
    Traffic("mixed", "256:60,384x256:20,384:20", 1.0),
    Traffic("one size", "256", 1.0),
    Traffic("bursts", "256:60,384x256:20,384:20", 3.0),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the results; rates in pictures a second, latencies in seconds at `offered`."""

    traffic: str
    server: str
    capacity: float
    offered: float
    p50_s: float
    p95_s: float
    p99_s: float
    requests: int
    lost: int
    versions: str
    cpu: str
    cores: int
    commit: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everybody, print and keep the rows."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers", description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "model/tiny")
    parser.add_argument("--servers", nargs="+", default=list(SERVERS), choices=list(SERVERS))
    names = [kind.name for kind in KINDS]
    parser.add_argument("--traffic", nargs="+", default=names, choices=names)
    parser.add_argument("--requests", type=int, default=60, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    kinds = [kind for kind in KINDS if kind.name in options.traffic]
    capacities: dict[tuple[str, str], Load] = {}
    for name in options.servers:
        with running((*SERVERS[name], str(options.model))) as server:
            warm_up(server.url, kinds)
            for kind in kinds:
                capacities[kind.name, name] = offered(
                    server.url, at_once(kind, options.requests, options.seed)
                )
                print(f"{name}, {kind.name}: {capacities[kind.name, name].answered:.2f} pictures a second")
    rates = {kind.name: SHARE * best_peer(capacities, kind.name) for kind in kinds}
    rows = []
    for name in options.servers:
        with running((*SERVERS[name], str(options.model))) as server:
            warm_up(server.url, kinds)
            for kind in kinds:
                traffic = at_rate(kind, rates[kind.name], options.requests, options.seed)
                rows.append(row(kind, name, capacities[kind.name, name], offered(server.url, traffic)))
                print(f"{name}, {kind.name}: p95 {rows[-1].p95_s:.2f} s at {rows[-1].offered:.2f} a second")
    keep(rows, options.output)
    return 0


def best_peer(capacities: dict[tuple[str, str], Load], kind: str) -> float:
    """Return the best peer's capacity for a kind of traffic; ours where nobody else was asked for."""
    of_kind = {name: load.answered for (own, name), load in capacities.items() if own == kind}
    peers = [answered for name, answered in of_kind.items() if name != OURS]
    return max(peers or of_kind.values())


def at_once(kind: Traffic, requests: int, seed: int) -> list[Arrival]:
    """Everything due at the beginning."""
    return [replace(arrival, at_s=0.0) for arrival in at_rate(kind, 1.0, requests, seed)]


def at_rate(kind: Traffic, rate: float, requests: int, seed: int) -> list[Arrival]:
    """The first `requests` of the traffic at a rate: the same sizes and seeds for everybody."""
    rng = random.Random(f"{kind.name} {seed}")
    times = bursty(rate, random.Random(f"{kind.name} {seed} times"), variation=kind.variation)
    endless = arrivals(times, parse_mix(kind.mix), rng, until_s=4 * requests / rate + 60)
    return endless[:requests]


def warm_up(url: str, kinds: Sequence[Traffic]) -> None:
    """Have every size made twice, so that nobody pays for first times."""
    sizes = {(share.width, share.height) for kind in kinds for share in parse_mix(kind.mix)}
    asyncio.run(offer(url, [Arrival(0.0, *size, "a cat", seed) for seed in (0, 1) for size in sorted(sizes)]))


def offered(url: str, traffic: Sequence[Arrival]) -> Load:
    return Load.of(asyncio.run(offer(url, traffic)))


def row(kind: Traffic, name: str, capacity: Load, load: Load) -> Row:
    where = machine()
    used = ["torch"] if name == OURS else ["torch", "diffusers", name]
    return Row(
        traffic=kind.name,
        server=name,
        capacity=round(capacity.answered, 3),
        offered=round(load.offered, 3),
        p50_s=round(load.p50_s, 3),
        p95_s=round(load.p95_s, 3),
        p99_s=round(load.p99_s, 3),
        requests=capacity.requests + load.requests,
        lost=sum(each.requests - each.statuses.get(200, 0) for each in (capacity, load)),
        versions=" ".join(f"{package} {version(package)}" for package in used),
        cpu=str(where["cpu"]),
        cores=int(where["cores"]),
        commit=str(where["commit"]),
    )


if __name__ == "__main__":
    sys.exit(main())
