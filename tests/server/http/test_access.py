"""Every answer has its id, its timings and its guards; every request its one line, without its prompt."""

import re

import httpx
import pytest
from structlog.testing import capture_logs

from tests.server.http.fake_engine import FakeEngine, serving, wait_until

PATHS = [
    "/livez",
    "/docs",
    "/metrics",
    "/v1/status",
    "/nothing",
    "/v1/models",
    "/v1/generate",
    "/v1/generate?prompt=a&seed=1",
]


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_is_marked(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-request-id"])
    metric = r'\w+;dur=\d+\.\d(;desc="position \d+")?'
    assert re.fullmatch(rf"{metric}(, {metric})*", headers["server-timing"])
    assert headers["server-timing"].split(", ")[-1].startswith("total")
    assert headers["x-content-type-options"] == "nosniff"
    assert "cache-control" in headers
    assert "server" not in headers


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        (b"abcdefgh", True),
        (b"A-b_9" * 12, True),
        (b"short", False),
        (b"a" * 65, False),
        (b"has space", False),
        (b"per%0d%0acent", False),
        (b"snow\xe2\x98\x83man", False),
        (b"", False),
    ],
)
def test_a_harmless_id_is_kept_and_any_other_replaced(client: httpx.Client, sent: bytes, kept: bool) -> None:
    answered = client.get("/livez", headers=[(b"X-Request-Id", sent)]).headers["x-request-id"]
    assert (answered.encode() == sent) == kept


def test_stages_are_told_where_there_are_any(client: httpx.Client) -> None:
    for answer in (
        client.post("/v1/generate", json={"prompt": "a"}),
        client.get("/v1/generate?prompt=a"),
        client.post("/v1/images/generations", json={"prompt": "a"}),
    ):
        assert answer.headers["server-timing"] == (
            'queue;dur=1.0;desc="position 3", text;dur=2.0, denoise;dur=3.0, decode;dur=4.0, encode;dur=5.0, '
            "predicted;dur=12.5, total;dur=15.0"
        )


def test_nothing_was_predicted_of_what_was_there_already() -> None:
    with serving(FakeEngine(found=(1, 0))) as url:
        timing = httpx.get(f"{url}/v1/generate?prompt=a&seed=1").headers["server-timing"]
    assert timing.startswith("queue;dur=1.0, text")
    assert "predicted" not in timing


def test_every_picture_says_how_many_steps_it_took(client: httpx.Client) -> None:
    for answer, steps in (
        (client.post("/v1/generate", json={"prompt": "a", "num_inference_steps": "auto"}), "3"),
        (client.post("/v1/generate", json={"prompt": "a"}, headers={"Accept": "image/png"}), "4"),
        (client.get("/v1/generate?prompt=a&num_inference_steps=auto"), "3"),
        (client.get("/v1/generate?prompt=a&seed=1&num_inference_steps=2"), "2"),
        (client.post("/v1/images/generations", json={"prompt": "a", "steps": 5}), "5"),
        *[(client.post("/v1/generate", json={"prompt": "a"}, headers={"Idempotency-Key": "k1"}), "4")] * 2,
    ):
        assert answer.headers["x-steps"] == steps
    assert "x-steps" not in client.post("/v1/generate", json={"prompt": "overloaded"}).headers


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/v1/generate", {"prompt": "zanzibar", "width": 512}, ("/v1/generate", 200, "ok")),
        (
            "POST",
            "/v1/generate",
            {"prompt": "zanzibar", "width": 5},
            ("/v1/generate", 422, "invalid_request"),
        ),
        ("GET", "/v1/generate?prompt=zanzibar", None, ("/v1/generate", 200, "ok")),
        ("GET", "/zanzibar", None, ("other", 404, "not_found")),
        ("GET", "/v1/models/zanzibar", None, ("/v1/models/{name:path}", 404, "not_found")),
    ],
)
def test_one_line_per_request_and_no_prompt_in_it(
    url: str, method: str, path: str, body: object, expected: tuple[str, int, str]
) -> None:
    with capture_logs() as logs:
        answer = httpx.request(method, url + path, json=body)
        request_id = answer.headers["x-request-id"]
        wait_until(lambda: any(line["request_id"] == request_id for line in logs))
    (line,) = (line for line in logs if line["request_id"] == request_id)
    assert (line["route"], line["status"], line["outcome"]) == expected
    assert line["size_bytes"] == len(answer.content)
    assert line["ms"] >= 0
    assert "zanzibar" not in str(line)
    if line["outcome"] == "ok":
        assert {"width", "height", "steps", "images"} <= set(line)
