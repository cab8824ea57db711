"""Starting: what cannot work is one line and a status, and TLS does not wait for those who say nothing."""

import asyncio
import shlex
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from server.__main__ import _Loop

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
