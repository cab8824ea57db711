"""A real server that asks for keys: official clients, a file that changes, limits, other ports and pages."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from server.keys import create, revoke
from tests.e2e.conftest import ROOT, Server, running_server
from tests.server.http.fake_engine import wait_until

PAGE = "https://pictures.example"
SMALL = {"prompt": "a cat", "num_inference_steps": 1}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.toml"


@pytest.fixture(scope="module")
def server(keys_file: Path) -> Iterator[Server]:
    """One server for all; it believes what 127.0.0.2 says about whom it speaks for."""
    create(keys_file, "first")
    arguments = ("--api-keys-file", str(keys_file), "--ops-port", "0", "--cors-origins", PAGE)
    arguments += ("--forwarded-allow-ips", "127.0.0.2", "--root-path", "/flux", "--max-body-mb", "2")
    with running_server(keys_file.parent, *arguments) as running:
        yield running


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def generate(server: Server, secret: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/generate", json=SMALL | fields, headers=bearer(secret), timeout=120)


def ops_url(server: Server) -> str:
    (found,) = re.findall(r"listening_for_operations\s+url=(\S+)", server.log)
    return str(found)


def test_the_official_client_knows_a_wrong_key_from_a_right_one(server: Server, keys_file: Path) -> None:
    def client(secret: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0)

    with client("sk-wrong") as api, pytest.raises(openai.AuthenticationError) as caught:
        api.images.generate(prompt="a cat")
    assert caught.value.code == "invalid_api_key"
    with client(create(keys_file, "openai", requests_per_minute=1)) as api:
        assert api.images.generate(prompt="a cat", extra_body={"steps": 1}).data
        with pytest.raises(openai.RateLimitError) as limited:
            api.images.generate(prompt="a cat")
        assert limited.value.code == "rate_limited"
        assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60
        assert api.models.list().data, "only pictures are counted"


def test_the_file_may_change_while_the_server_runs(server: Server, keys_file: Path) -> None:
    secret = create(keys_file, "changing")
    assert generate(server, secret).status_code == 200
    good = keys_file.read_text()
    keys_file.write_text(good + "[broken")
    assert generate(server, secret).status_code == 200
    assert "keys_not_reloaded" in server.log
    keys_file.write_text(good)
    revoke(keys_file, "changing")
    answer = generate(server, secret)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert secret not in server.log


def test_a_day_of_the_device_is_what_pictures_really_took(server: Server, keys_file: Path) -> None:
    secret = create(keys_file, "daily", device_seconds_per_day=1e-6)
    assert generate(server, secret).status_code == 200, "an unused day lets one in, however little is left"
    answer = generate(server, secret)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "quota_exceeded")
    assert answer.headers["x-should-retry"] == "false"


def test_a_key_with_little_to_do_does_not_wait_for_one_with_much(server: Server, keys_file: Path) -> None:
    secrets = {name: create(keys_file, name) for name in ("much", "little")}
    metrics = ops_url(server) + "/metrics"
    with httpx.Client(base_url=server.url, timeout=120) as client, ThreadPoolExecutor(13) as threads:

        def ask(name: str, seed: int, **fields: int) -> int:
            body = SMALL | {"seed": seed} | fields
            return client.post("/v1/generate", json=body, headers=bearer(secrets[name])).status_code

        asked = [threads.submit(ask, "much", 0, width=640, height=640)]  # all others come in its one step
        wait_until(lambda: "\nflux_backlog_device_seconds 0.0\n" not in httpx.get(metrics).text)
        asked += [threads.submit(ask, "much", seed) for seed in range(1, 11)]
        asked += [threads.submit(ask, "little", seed) for seed in range(11, 13)]
        assert [each.result() for each in asked] == [200] * 13

    def in_order() -> list[str]:
        return re.findall(r" key=(much|little) .*outcome=ok", server.log)

    wait_until(lambda: len(in_order()) == 13)
    done = in_order()
    assert (done.count("much"), done.count("little")) == (11, 2)
    # Half of the device is each key's: two pictures take about as long as two of the others. Where keys meant
    # nothing, who came last would be last.
    assert done[::-1].index("little") >= 6, f"many are made after the two: {done}"


def test_operations_have_a_port_of_their_own_without_keys(server: Server) -> None:
    ops = ops_url(server)
    for path in ("/metrics", "/docs", "/openapi.json", "/livez", "/readyz"):
        assert httpx.get(ops + path).status_code == 200, path
    assert "flux_requests_total" in httpx.get(f"{ops}/metrics").text
    described = httpx.get(f"{ops}/openapi.json").json()
    assert "/v1/generate" in described["paths"]
    assert described["servers"] == [{"url": "/flux"}]
    assert httpx.post(f"{ops}/v1/generate", json=SMALL).status_code == 404
    for path in ("/metrics", "/docs", "/openapi.json"):
        assert httpx.get(server.url + path).status_code == 404, path
    for path in ("/livez", "/readyz"):
        assert httpx.get(server.url + path).status_code == 200, path


def test_a_page_may_ask_before_it_calls_without_a_key(server: Server) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    headers["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang"
    preflight = httpx.options(f"{server.url}/v1/images/generations", headers=headers)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, PAGE)
    refused = httpx.post(f"{server.url}/v1/images/generations", json={}, headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)


def test_only_a_known_proxy_is_believed(server: Server) -> None:
    def client_in_log(source: str) -> str:
        headers = {"X-Forwarded-For": "203.0.113.9", "X-Request-Id": f"from-{source}".replace(".", "-")}
        with httpx.Client(transport=httpx.HTTPTransport(local_address=source)) as client:
            client.get(f"{server.url}/v1/models", headers=headers)
        line = re.compile(rf"client=(\S+).*request_id={headers['X-Request-Id']}")
        wait_until(lambda: line.search(server.log) is not None)
        (found,) = line.findall(server.log)
        return str(found)

    assert client_in_log("127.0.0.2") == "203.0.113.9"
    assert client_in_log("127.0.0.1") == "127.0.0.1"


def test_a_body_may_be_as_long_as_was_set(server: Server, keys_file: Path) -> None:
    headers = bearer(create(keys_file, "long")) | {"Content-Type": "application/json"}
    for size_bytes, status in ((2 << 20, 422), ((2 << 20) + 1, 413)):
        body = b"{}".ljust(size_bytes)
        answer = httpx.post(f"{server.url}/v1/generate", content=body, headers=headers)
        assert answer.status_code == status


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], ["--host 0.0.0.0 can be reached", "--api-keys-file", "--insecure-no-auth"]),
        (["--api-keys-file", "nowhere.toml"], ["--api-keys-file", "no file at nowhere.toml"]),
        (["--api-keys-file", "README.md"], ["--api-keys-file", "not TOML"]),
    ],
    ids=["open by accident", "no file", "no keys file"],
)
def test_what_cannot_start_is_one_line_and_status_2(arguments: list[str], words: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "server", "--port", "0", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("FLUX_")},
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert all(word in line for word in words), line


def test_a_port_for_operations_that_is_taken_is_one_line_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "server", "--port", "0", "--ops-port", str(port)]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
