"""What becomes of the work of clients that leave: `python -m loadtests.leaving`.

Many clients ask and close their connections before they are answered. Nothing of their work may go on beyond
the step that runs, and the next client must not wait for more than that.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadtests.generator import offer
from loadtests.outcomes import Load
from loadtests.report import keep, machine
from loadtests.servers import OURS, ROOT, Server, running
from loadtests.traffic import Arrival

RESULTS = ROOT / "loadtests/results/leaving.csv"
SIDE = 256
STEPS = 4  # of every picture


@dataclass(frozen=True, slots=True)
class Row:
    """One run; times in seconds. `steps_after` ended for clients that had left: the one that was running."""

    clients: int
    steps_before: int
    steps_after: int
    running_step_s: float
    alone_s: float
    next_s: float
    cpu: str
    cores: int
    commit: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a server, let clients leave it, and print and keep what those who come after them see."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.leaving", description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    with running((*OURS, "--max-backlog-s", "3600")) as server:
        row = leave(server, options.clients)
    keep([row], options.output)
    for name, value in asdict(row).items():
        print(f"{name:>15} {value}")
    return 0


def leave(server: Server, clients: int) -> Row:
    """Let everybody leave a busy server, and ask for one more picture."""
    alone_s = min(_one(server.url, seed) for seed in range(5))
    asyncio.run(_ask_and_leave(server.url, clients))
    before, before_s = _denoised(server.url)
    next_s = _one(server.url, 99)
    after, after_s = _denoised(server.url)
    where = machine()
    return Row(
        clients=clients,
        steps_before=before,
        steps_after=after - before - STEPS,
        running_step_s=round(after_s - before_s - alone_s, 3),
        alone_s=round(alone_s, 3),
        next_s=round(next_s, 3),
        cpu=str(where["cpu"]),
        cores=int(where["cores"]),
        commit=str(where["commit"]),
    )


def _denoised(url: str) -> tuple[int, float]:
    """Return how many denoising steps the server has run, and their seconds."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", trust_env=False).text)
    samples = {
        sample.name: sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("kind") == "denoise"
    }
    return int(samples["flux_step_seconds_count"]), samples["flux_step_seconds_sum"]


def _one(url: str, seed: int) -> float:
    return Load.of(asyncio.run(offer(url, [Arrival(0.0, SIDE, SIDE, "a red circle", seed)]))).p50_s


async def _ask_and_leave(url: str, clients: int) -> None:
    """Connect, send, and close everything once the server has all of it and has begun."""
    host, _, port = url.removeprefix("http://").partition(":")
    connections = []
    for seed in range(clients):
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps({"prompt": "a cat", "width": SIDE, "height": SIDE, "seed": 1000 + seed}).encode()
        writer.write(
            b"POST /v1/generate HTTP/1.1\r\nHost: leaving\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        connections.append((reader, writer))
    await asyncio.wait_for(connections[0][0].readexactly(1), 60)  # the first picture is there: all are known
    for _, writer in connections:
        writer.close()
    await asyncio.gather(*(writer.wait_closed() for _, writer in connections), return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
