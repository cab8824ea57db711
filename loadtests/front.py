"""What the front end costs: it alone, with a worker that answers at once, beside bare FastAPI.

`python -m loadtests.front` runs each server on one core, the client and the worker on another, in turns: one
connection for the time of a request, then many for the requests a second. Both answer the same bytes.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated

import psutil
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel, Field

from loadtests.instant_worker import PICTURE
from loadtests.outcomes import quantile
from loadtests.report import keep, machine
from server.app import assemble, open_adapters, open_jobs, sources_of, worker_starts
from server.engine import Engine
from server.http.auth import Door
from server.http.connection import Connection
from server.idempotency import Answers
from server.metrics import Metrics
from server.quotas import Quotas
from server.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "loadtests/results/front.csv"
SERVERS = ("schnell-server", "fastapi")
ROUNDS = 5
WORKER = (sys.executable, "-m", "loadtests.instant_worker")


@dataclass(frozen=True, slots=True)
class Row:
    """One server in one run: medians over the rounds, milliseconds, requests a second on one core."""

    server: str
    request_ms: float
    per_second: float
    p99_ms: float
    connections: int
    cpu: str
    python: str
    commit: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both in turns, print and keep the rows."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.front", description=__doc__)
    parser.add_argument("--requests", type=int, default=300, help="of each round on one connection")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each round on many connections")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, options.port)
        return 0
    single: dict[str, list[float]] = {name: [] for name in SERVERS}
    many: dict[str, list[tuple[float, float]]] = {name: [] for name in SERVERS}
    for _ in range(ROUNDS):
        for name in SERVERS:
            with running(name) as port:
                times = asyncio.run(ask_in_turn(port, options.requests))
                single[name].append(median(times))
                many[name].append(asyncio.run(ask_together(port, options.connections, options.seconds)))
    where = machine()
    rows = [
        Row(
            server=name,
            request_ms=round(1000 * median(single[name]), 3),
            per_second=round(median(rate for rate, _ in many[name]), 1),
            p99_ms=round(1000 * median(p99 for _, p99 in many[name]), 1),
            connections=options.connections,
            cpu=str(where["cpu"]),
            python=str(where["python"]),
            commit=str(where["commit"]),
        )
        for name in SERVERS
    ]
    for row in rows:
        print(f"{row.server}: {row.request_ms} ms a request, {row.per_second}/s, p99 {row.p99_ms} ms")
    print(f"overhead: {rows[0].request_ms - rows[1].request_ms:.3f} ms a request")
    keep(rows, options.output)
    return 0


class Body(BaseModel):
    """The least that a route for pictures would check."""

    prompt: str
    width: Annotated[int, Field(ge=256, le=1536, multiple_of=16)] = 256
    height: Annotated[int, Field(ge=256, le=1536, multiple_of=16)] = 256
    seed: int = 0


def serve(name: str, port: int) -> None:
    """Serve one of the two until the process is ended."""
    if name == "fastapi":
        app = FastAPI()

        @app.post("/v1/generate")
        async def answer(body: Body) -> Response:
            return Response(PICTURE, media_type="image/png")

        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        serve_ours(Settings(max_backlog_s=3600, data_dir=Path(folder)), port)


def serve_ours(settings: Settings, port: int) -> None:
    """Serve this server's front end around a worker that answers at once."""
    metrics = Metrics()
    engine = Engine(
        worker_starts(settings, cores=1),
        metrics=metrics,
        adapters=open_adapters(settings),
        max_backlog_s=settings.max_backlog_s,
        default_deadline_s=None,
        auto_steps_backlog_s=settings.auto_steps_backlog_s,
        hang_s=settings.hang_s,
        image_cache_bytes=0,
        charge=Door().charge,
        command=WORKER,
    )
    jobs, outputs = open_jobs(settings, engine, metrics, Quotas())
    answers = Answers(0, metrics=metrics)
    app = assemble(engine, metrics, answers, jobs, outputs, sources_of(settings, outputs))
    uvicorn.run(
        app, host="127.0.0.1", port=port, http=Connection, ws="none", log_config=None, access_log=False
    )


@contextmanager
def running(name: str) -> Iterator[int]:
    """Start a server on the first core and its worker on the last; yield its port."""
    cores = sorted(os.sched_getaffinity(0))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "loadtests.front", "--serve", name, "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_ready(port, process)
            os.sched_setaffinity(process.pid, {cores[0]})
            for child in (*psutil.Process(process.pid).children(recursive=True), psutil.Process()):
                child.cpu_affinity([cores[-1]])
            yield port
        finally:
            psutil.Process().cpu_affinity(cores)
            process.terminate()


def wait_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    """Ask until the server makes pictures; raises `RuntimeError` if it ends first."""
    while process.poll() is None:
        try:
            asyncio.run(ask_in_turn(port, 1))
            return
        except (OSError, RuntimeError, asyncio.IncompleteReadError):
            time.sleep(0.1)
    raise RuntimeError(f"{process.args} ended with status {process.returncode}")


async def ask_in_turn(port: int, requests: int) -> list[float]:
    """Return the seconds of each of some requests on one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        return [await _ask(reader, writer, seed) for seed in range(requests)]
    finally:
        writer.close()
        await writer.wait_closed()


async def ask_together(port: int, connections: int, seconds: float) -> tuple[float, float]:
    """Keep many connections busy; return the requests a second and the p99 of their seconds."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + seconds
    times: list[float] = []

    async def ask_on(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        seed = number << 32
        while loop.time() < ends:
            times.append(await _ask(reader, writer, seed := seed + 1))
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(ask_on(number) for number in range(connections)))
    return len(times) / seconds, quantile(times, 99)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seed: int) -> float:
    body = json.dumps({"prompt": "a red circle", "width": 256, "height": 256, "seed": seed}).encode()
    began = time.perf_counter()
    writer.write(
        b"POST /v1/generate HTTP/1.1\r\nHost: front\r\nAccept: image/*\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    answer = await reader.readexactly(length)
    took = time.perf_counter() - began
    if not head.startswith(b"http/1.1 200") or answer != PICTURE:
        raise RuntimeError(f"not the picture: {head[:200]!r}")
    return took


if __name__ == "__main__":
    sys.exit(main())
