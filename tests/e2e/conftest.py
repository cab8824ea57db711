"""The real server in its own processes, on a free port of the loopback interface."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from playwright.sync_api import Browser

from tests.e2e.browser import Visit, launched, visiting

ROOT = Path(__file__).resolve().parents[2]
READY_S = 60.0
CALLABLE = "127.0.0.2"  # the address inside that webhooks of the shared server may call


@dataclass
class Server:
    """A running server; `log` is what it wrote to stderr so far."""

    process: subprocess.Popen[bytes]
    url: str
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def worker_pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    def wait_ready(self, within_s: float = READY_S) -> float:
        """Poll `/readyz` until it is 200; return the seconds that it took.

        Over one connection: a client for every look would cost 23 ms of what the server starts with.
        """
        began = time.monotonic()
        with httpx.Client() as client:
            while time.monotonic() - began < within_s:
                assert self.process.poll() is None, self.log
                if client.get(f"{self.url}/readyz").status_code == 200:
                    return time.monotonic() - began
                time.sleep(0.02)
        raise AssertionError(f"not ready within {within_s} s:\n{self.log}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def running_server(folder: Path, *arguments: str, ready: bool = True) -> Iterator[Server]:
    """Start `python -m server` and end it whatever happens.

    A machine that is busy otherwise makes pictures look expensive: the bound on the backlog is far away
    unless a test sets it. Finished pictures are not kept, so that what a test asks for is made. Nor does
    every server measure for seconds what its steps cost.
    """
    defaults = {
        "--max-backlog-s": "3600",
        "--image-cache-mb": "0",
        "--calibration-s": "0",
        "--data-dir": str(folder),
    }
    for name, value in defaults.items():
        if name not in arguments:
            arguments = (*arguments, name, value)
    log_path = folder / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "--port", "0", *arguments],
            cwd=ROOT,
            stderr=log,
            env={name: value for name, value in os.environ.items() if not name.startswith("FLUX_")},
        )
    try:
        server = Server(process, _url(process, log_path), log_path)
        if ready:
            server.wait_ready()
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _url(process: subprocess.Popen[bytes], log_path: Path) -> str:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if found := re.search(r'url"?[=:] ?"?([^\s",]+)[\s",]', log_path.read_text()):
            return found[1]
        assert process.poll() is None, log_path.read_text()
        time.sleep(0.01)
    raise AssertionError("the server did not say where it listens")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(folder, "--webhook-allow-networks", CALLABLE) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A browser for the tests of a module."""
    with launched() as made:
        yield made


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A page in it that remembers nothing, and on which nothing may go wrong."""
    with visiting(browser) as made:
        yield made


def run_node(script: str, *arguments: str, **environment: str) -> str:
    """Run a script of `tests/e2e/node` and return what it printed; skip where it cannot run."""
    folder = ROOT / "tests" / "e2e" / "node"
    if shutil.which("node") is None or not (folder / "node_modules").is_dir():
        pytest.skip("the clients for Node are not installed: `make clients` does it where npm is")
    ended = subprocess.run(
        ["node", script, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def run_with(package: str, script: str, *arguments: str) -> str:
    """Run a script of `tests/e2e` with another version of a package, and return what it printed.

    It has a process of its own, since both are imported by the same name; skips where it is not installed.
    """
    folder = ROOT / "build" / "clients" / package
    if not folder.is_dir():
        pytest.skip(f"{package} is not in build/clients: `make clients` installs it")
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tests" / "e2e" / script), *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
