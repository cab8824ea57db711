"""One table from errors to statuses, one body for all of them, and nothing of the host in any."""

import math
from collections.abc import Iterator

import httpx
import pytest
from structlog.testing import capture_logs

from server.errors import DeadlineExceeded, GenerationFailed, OutOfMemory, ServerError, from_code
from server.http.errors import STATUS
from tests.server.http.fake_engine import FAILURES, FakeEngine, serving, wait_until

KEYS = {"code", "type", "message", "param", "request_id", "retryable"}


def kinds(root: type[ServerError] = ServerError) -> Iterator[type[ServerError]]:
    yield root
    for kind in root.__subclasses__():
        yield from kinds(kind)


def test_the_table_has_every_error_and_nothing_else() -> None:
    assert {kind.code for kind in kinds()} == set(STATUS)
    assert len({kind.code for kind in kinds()}) == len(list(kinds())), "two errors share a code"


def test_what_a_worker_reports_is_the_same_error_again() -> None:
    for kind in (GenerationFailed, OutOfMemory, DeadlineExceeded):
        assert type(from_code(kind.code, "why")) is kind
    assert type(from_code("of a newer worker", "why")) is GenerationFailed


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/images/generations"])
@pytest.mark.parametrize(
    ("name", "status", "kind", "retry_after"),
    [
        ("overloaded", 429, "rate_limit_error", 8),
        ("not_ready", 503, "server_error", 2),
        ("worker_lost", 503, "server_error", 1),
        ("deadline_exceeded", 504, "server_error", None),
        ("generation_failed", 500, "server_error", None),
        ("out_of_memory", 500, "server_error", None),
        ("internal_error", 500, "server_error", None),
    ],
)
def test_failures_of_the_engine(
    client: httpx.Client, path: str, name: str, status: int, kind: str, retry_after: int | None
) -> None:
    answer = client.post(path, json={"prompt": name})
    error = answer.json()["error"]
    assert set(error) == KEYS
    assert (answer.status_code, error["code"], error["type"]) == (status, name, kind)
    assert error["message"] == str(FAILURES[name])
    assert error["request_id"] == answer.headers["x-request-id"]
    assert answer.headers.get("retry-after") == (None if retry_after is None else str(retry_after))
    assert error["retryable"] == (retry_after is not None)
    assert answer.headers["x-should-retry"] == str(error["retryable"]).lower()
    assert answer.headers["cache-control"] == "no-store"


def test_waits_are_told_in_whole_seconds_rounded_up() -> None:
    assert math.ceil(FAILURES["overloaded"].retry_after_s or 0) == 8  # type: ignore[attr-defined]


def test_a_fault_of_the_server_is_told_to_the_log_and_not_to_the_client(url: str) -> None:
    with capture_logs() as logs:
        answer = httpx.post(f"{url}/v1/generate", json={"prompt": "fault"})
        error = answer.json()["error"]
        wait_until(lambda: any(line["request_id"] == error["request_id"] for line in logs))
    assert (answer.status_code, error["code"], set(error)) == (500, "internal_error", KEYS)
    assert "secret" not in answer.text
    assert answer.headers["x-should-retry"] == "false"
    told = next(line for line in logs if line["request_id"] == error["request_id"])
    assert told["event"] == "unexpected"
    assert told["exc_info"]


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("DELETE", "/", 405, "GET, HEAD"),
        ("GET", "/livez//", 404, None),
        ("GET", "/v1/generate/", 404, None),
        ("GET", "/livez/../readyz%00", 404, None),
        ("POST", "/v1/images/variations", 404, None),
        ("GET", "/v1/images/generations", 405, "POST"),
        ("DELETE", "/v1/generate", 405, "GET, POST"),
        ("POST", "/livez", 405, "GET, HEAD"),
        ("OPTIONS", "/v1/generate", 405, "GET, POST"),
        ("TRACE", "/livez", 405, "GET, HEAD"),
        ("BREW", "/v1/models", 405, "GET"),
    ],
)
def test_what_no_route_takes(
    client: httpx.Client, method: str, path: str, status: int, allow: str | None
) -> None:
    answer = client.request(method, path)
    assert answer.status_code in (status, 400) if method == "BREW" else answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == KEYS
    assert error["type"] == "invalid_request_error"
    if answer.status_code == 405:
        assert answer.headers["allow"] == allow
        assert allow in error["message"]
    assert "location" not in answer.headers


def test_before_the_model_is_loaded_everything_that_needs_it_says_so() -> None:
    with serving(FakeEngine(model_info=None, ready=False)) as url:
        for answer in (
            httpx.post(f"{url}/v1/generate", json={"prompt": "a"}),
            httpx.get(f"{url}/v1/generate?prompt=a&seed=1", headers={"If-None-Match": "*"}),
            httpx.post(f"{url}/v1/images/generations", json={"prompt": "a"}),
            httpx.get(f"{url}/v1/models"),
            httpx.get(f"{url}/readyz"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert httpx.get(f"{url}/livez").status_code == 200
        assert httpx.post(f"{url}/v1/generate", json={"prompt": 1}).status_code == 422
