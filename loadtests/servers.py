"""Servers that a measurement starts for itself: on the loopback interface, ended with all their processes."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[1]
READY_S, STOP_S = 120.0, 20.0
OURS = ("-m", "server", "--port", "{port}", "--data-dir", str(ROOT / "build/loadtests"))


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is ready."""

    url: str
    pid: int

    @property
    def memory_bytes(self) -> int:
        """What it and its workers hold of the machine's memory."""
        started = psutil.Process(self.pid)
        return sum(each.memory_info().rss for each in (started, *started.children(recursive=True)))


@contextmanager
def running(arguments: Sequence[str]) -> Iterator[Server]:
    """Start Python with `arguments`, `{port}` being a free one, and wait until `/readyz` says 200."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, *(part.format(port=port) for part in arguments)]
    quiet = subprocess.DEVNULL  # a server's log is long, and its end is told by its status
    process = subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_ready(url, process, command)
        yield Server(url, process.pid)
    finally:
        started = psutil.Process(process.pid)
        family = [started, *started.children(recursive=True)]
        process.terminate()
        _, alive = psutil.wait_procs(family, timeout=STOP_S)
        for each in alive:
            each.kill()
        process.wait()


def _wait_ready(url: str, process: subprocess.Popen[bytes], command: Sequence[str]) -> None:
    began = time.monotonic()
    while time.monotonic() - began < READY_S:
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
        try:
            if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"{' '.join(command)} was not ready within {READY_S:.0f} s")
