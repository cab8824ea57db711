"""Starting, dying, draining: nobody is left without an answer."""

import json
import os
import shlex
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

import loadtests.servers
from loadtests.leaving import leave
from model.verify import verify, write_sums
from tests.e2e.conftest import ROOT, Server, running_server

LONG = {"prompt": "a tree", "width": 512, "height": 512, "num_inference_steps": 12}  # runs for seconds


def post(server: Server, seed: int, **body: object) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/generate",
        json={"prompt": "a tree", "seed": seed, **body},
        headers={"Accept": "image/png"},
        timeout=120,
    )


def post_json(server: Server, body: dict[str, object]) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/generate", json=body, timeout=300)


def wait_in_hand(server: Server, more_than: float = 0.0) -> None:
    """Wait until the server has admitted work."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        text = httpx.get(f"{server.url}/metrics").text
        backlog = next(line for line in text.splitlines() if line.startswith("flux_backlog_device_seconds "))
        if float(backlog.split()[-1]) > more_than:
            return
    raise AssertionError("nothing was admitted")


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for the first two tests, of which the second ends it."""
    with running_server(tmp_path_factory.mktemp("mortal"), "--drain-s", "300") as running:
        yield running


def test_a_killed_worker_costs_nobody_their_picture(mortal: Server) -> None:
    with ThreadPoolExecutor(4) as clients:
        running = [clients.submit(post, mortal, seed) for seed in range(4)]
        wait_in_hand(mortal)
        (pid,) = mortal.worker_pids()
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        while httpx.get(f"{mortal.url}/readyz").status_code == 200:
            assert time.monotonic() - began < 2, "the death was not noticed"
        assert mortal.wait_ready(within_s=10) < 10
        answers = [future.result() for future in running]
        assert [answer.status_code for answer in answers] == [200] * 4
        alone = [post(mortal, seed).content for seed in range(4)]
        assert [answer.content for answer in answers] == alone
        assert "flux_worker_restarts_total 1.0" in httpx.get(f"{mortal.url}/metrics").text


def test_sigterm_finishes_what_was_admitted_and_exits_with_0(mortal: Server) -> None:
    with ThreadPoolExecutor(1) as clients:
        running = clients.submit(post_json, mortal, LONG)
        wait_in_hand(mortal)
        mortal.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        while httpx.get(f"{mortal.url}/readyz").status_code == 200:
            assert time.monotonic() - began < 2, "still ready while draining"
        late = post(mortal, 9)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "not_ready")
        assert int(late.headers["retry-after"]) >= 1
        assert len(running.result().json()["images"]) == 1
        assert mortal.process.wait(30) == 0


def test_clients_that_leave_take_their_work_with_them(server: Server) -> None:
    row = leave(loadtests.servers.Server(server.url, server.process.pid), clients=24)
    assert row.steps_after <= 1, "no more than the step that was running"
    assert "outcome=client_gone" in server.log


def test_overload_is_answered_at_the_door(tmp_path: Path) -> None:
    with running_server(tmp_path, "--max-backlog-s", "0.5") as server, ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda seed: post(server, seed, width=512, height=512), range(16)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        for answer in refused:
            assert answer.json()["error"]["code"] == "overloaded"
            assert 1 <= int(answer.headers["retry-after"]) <= 120
            assert answer.elapsed.total_seconds() < 1
        assert post(server, 1).status_code == 200
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as client:
            asked = [
                clients.submit(client.images.generate, prompt="a", size="512x512", n=4) for _ in range(4)
            ]
            errors = [error for future in asked if (error := future.exception()) is not None]
        assert 1 <= len(errors) < 4
        for error in errors:
            assert isinstance(error, openai.RateLimitError)
            assert 1 <= int(error.response.headers["retry-after"]) <= 120
            assert error.response.headers["x-should-retry"] == "true"


def test_a_deadline_that_passes_is_answered_with_504(server: Server) -> None:
    answer = post(server, 1, deadline_ms=50, **LONG)
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")


def test_tls_and_json_logs(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        shlex.split(
            "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost "
            "-addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out certificate.pem"
        ),
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    arguments = ("--tls-cert", str(certificate), "--tls-key", str(key), "--log-format", "json")
    with running_server(tmp_path, *arguments, ready=False) as server:
        assert server.url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"{server.url}/livez", verify=trusting).text == "ok\n"
        assert httpx.get(f"{server.url}/v1/models", verify=trusting).status_code == 503
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log.splitlines()]
        (request,) = (line for line in lines if line["event"] == "request")
        assert (request["route"], request["status"], request["level"]) == ("/v1/models", 503, "info")


def test_the_embedded_model_is_as_its_sums_say() -> None:
    verify(ROOT / "model" / "tiny")


def failed_start(*arguments: str, **environment: str) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as folder:
        ended = subprocess.run(
            [sys.executable, "-m", "server", "--port", "0", *arguments],
            cwd=ROOT,
            env=os.environ | {"FLUX_DATA_DIR": folder} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    return ended.returncode, ended.stderr


def test_tampered_weights_are_one_line_and_status_3(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(ROOT / "model" / "tiny", folder)
    write_sums(folder)
    path = folder / "vae" / "config.json"
    path.write_bytes(path.read_bytes() + b" ")
    status, log = failed_start("--model", str(folder), "--log-level", "error")
    assert status == 3
    (line,) = log.strip().splitlines()
    assert "the model cannot be served" in line
    assert "vae/config.json: has SHA-256" in line


def test_wrong_settings_are_one_line_and_status_2(tmp_path: Path) -> None:
    for arguments, environment, named in (
        (["--portt", "1"], {}, "portt"),
        (["--port", "x"], {}, "--port"),
        (["--tls-cert", str(tmp_path)], {}, "tls"),
        ([], {"FLUX_PROT": "1"}, "FLUX_PROT"),
    ):
        status, log = failed_start(*arguments, **environment)
        assert status == 2
        assert named in log
        assert "Traceback" not in log


def test_an_address_or_a_folder_in_use_is_one_line_and_status_2(tmp_path: Path) -> None:
    with running_server(tmp_path, ready=False) as server:
        status, log = failed_start("--data-dir", str(tmp_path))
        assert status == 2
        (line,) = log.strip().splitlines()
        assert "another server uses it" in line
        status, log = failed_start("--port", server.url.rpartition(":")[2])
        assert status == 2
        assert "cannot listen" in log
