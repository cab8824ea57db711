"""Starting and ending: one line and a status for what cannot work, no address before it answers."""

import asyncio
import os
import shlex
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from server.__main__ import _end_in_order, _listen, _Loop, _Server
from tests.server.engines import ask, engine_on, request, run, until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(shlex.split(command), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize("broken", ["key.pem", "cert.pem"])
def test_files_that_are_no_certificate_and_key_are_one_line_and_status_2(
    certificate: Path, tmp_path: Path, broken: str
) -> None:
    paths = {name: certificate / name for name in ("key.pem", "cert.pem")}
    paths[broken] = tmp_path / broken
    paths[broken].write_text("no PEM")
    arguments = ["--tls-cert", str(paths["cert.pem"]), "--tls-key", str(paths["key.pem"])]
    arguments += ["--data-dir", str(tmp_path)]
    ended = subprocess.run(
        [sys.executable, "-m", "server", "--port", "0", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "--tls-cert and --tls-key are not a PEM certificate and its key" in line


def test_a_client_that_opens_tls_and_says_nothing_is_let_go(certificate: Path) -> None:
    class Impatient(_Loop):
        handshake_s = 0.2

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")

    async def story() -> None:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=context)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            async with asyncio.timeout(5):
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    with asyncio.Runner(loop_factory=Impatient) as runner:
        runner.run(story())


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    assert scope["type"] == "lifespan"


def quiet(announced: Callable[[], None]) -> _Server:
    return _Server(uvicorn.Config(application, log_config=None, lifespan="off"), announce=announced)


def test_an_address_is_told_when_connections_are_accepted_there() -> None:
    listener = _listen("127.0.0.1", 0)
    told: list[int] = []

    def announced() -> None:
        with socket.create_connection(listener.getsockname(), timeout=5):
            told.append(sum(each.is_serving() for each in server.servers))
        server.should_exit = True

    server = quiet(announced)
    asyncio.run(server.serve(sockets=[listener]))
    assert told == [1]


@pytest.mark.parametrize(("drain_s", "signals"), [(300, 2), (0, 1)])
def test_what_is_not_finished_in_time_or_when_a_second_signal_comes_is_answered_before_the_end(
    drain_s: float, signals: int
) -> None:
    async def story() -> None:
        server = quiet(lambda: None)
        async with engine_on() as engine:
            ending = asyncio.create_task(_end_in_order(server, engine, drain_s))
            running = asyncio.create_task(ask(engine, request("hang")))
            await until(lambda: engine.stats().in_hand == 1)
            for count in range(signals):
                assert not server.should_exit
                os.kill(os.getpid(), signal.SIGTERM)
                await until(lambda: not engine.ready)
                if count == 0 and signals == 2:
                    assert await ask(engine, request()) == "not_ready", "nothing is let in any more"
                    assert not running.done(), "what was let in has its time"
            assert await running == "not_ready"
            assert await ending == 0
            assert server.should_exit

    run(story)
