"""The command that says whether a server is healthy: of the same environment, with TLS and without."""

import shlex
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from server.health import main


@contextmanager
def answering(status: int, *, address: str = "127.0.0.1", certificate: Path | None = None) -> Iterator[int]:
    """A server that says how ready it is; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    server = HTTPServer((address, 0), Handler)
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("status", "found"), [(200, 0), (503, 1)])
@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_server_is_healthy_when_it_is_ready(
    monkeypatch: pytest.MonkeyPatch, host: str, status: int, found: int
) -> None:
    monkeypatch.setenv("FLUX_HOST", host)
    monkeypatch.setenv("FLUX_INSECURE_NO_AUTH", "true")
    with answering(status) as port:
        monkeypatch.setenv("FLUX_PORT", str(port))
        assert main() == found


def test_a_server_with_tls_is_asked_over_tls_whatever_its_certificate_is_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=a.example "
    subprocess.run(
        shlex.split(command + "-keyout both.pem -out cert.pem"), cwd=tmp_path, check=True, capture_output=True
    )
    both = tmp_path / "both.pem"
    both.write_text(both.read_text() + (tmp_path / "cert.pem").read_text())
    for name in ("FLUX_TLS_CERT", "FLUX_TLS_KEY"):
        monkeypatch.setenv(name, str(both))
    with answering(200, certificate=both) as port:
        monkeypatch.setenv("FLUX_PORT", str(port))
        assert main() == 0
        monkeypatch.delenv("FLUX_TLS_CERT")
        monkeypatch.delenv("FLUX_TLS_KEY")
        assert main() == 1, "plain HTTP is not what it speaks"


def test_nobody_there_is_not_healthy_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(200) as port:
        monkeypatch.setenv("FLUX_PORT", str(port))
    assert main() == 1
    assert "ConnectionRefusedError" in capsys.readouterr().err
