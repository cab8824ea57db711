"""Bodies: whatever they are, the answer is a picture or one clear sentence about one field."""

import json
import socket
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.http.body import shown
from tests.server.http.fake_engine import FakeEngine, wait_until

JSON_TYPE = {"Content-Type": "application/json"}
PATHS = ["/v1/generate", "/v1/images/generations"]
FIELDS = [
    "prompt",
    "width",
    "seed",
    "num_inference_steps",
    "n",
    "size",
    "steps",
    "image",
    "guidance_scale",
    "x",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers()
    | st.text()
    | st.sampled_from(["auto", "256x256"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(VALUES | st.binary() | st.text(st.characters(categories=["Cs", "Cc", "L"])) | st.integers(10**300))
def test_any_value_can_be_shown_shortly_and_harmlessly(value: Any) -> None:
    text = shown(value)
    assert len(text) < 400
    assert not any(ord(character) < 32 for character in text)
    text.encode()


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=120, deadline=None)
@given(
    body=st.binary(max_size=100)
    | st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4).map(lambda each: json.dumps(each).encode())
)
@example(body=b'{"prompt": "\\ud800"}')
@example(body=b'{"prompt": "a", "guidance_scale": NaN}')
@example(body=b'{"prompt": "a", "\\ud800": 1}')
@example(body=b'{"prompt": "a", "seed": 1e400}')
def test_no_body_is_a_fault_of_the_server(client: httpx.Client, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers=JSON_TYPE)
    assert answer.status_code in (200, 400, 422)
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert 0 < len(error["message"]) < 1000


@pytest.mark.parametrize("path", ["/hf", "/sdapi/v1/txt2img", "/sdapi/v1/options", "/predictions"])
@pytest.mark.parametrize(
    "text",
    [
        '"\\ud800"',
        "NaN",
        "1e400",
        "9" * 4000,
        '{"\\ud800": "\\ud800"}',
        "[" * 5000,
        '{"prompt": "\\ud800"}',
        '{"prompt": "a", "seed": 1e400}',
        '{"width": "\\ud800", "prompt": {}}',
    ],
    ids=lambda text: text[:12],
)
def test_what_json_hardly_knows_is_the_fault_of_who_sent_it(
    client: httpx.Client, path: str, text: str
) -> None:
    fields = ("inputs", "prompt", "parameters", "input", "width", "seed", "sd_model_checkpoint")
    bodies = [text, *(f'{{"{field}": {text}}}' for field in fields), f'{{"\\ud800": {text}}}']
    for body in bodies:
        answer = client.post(path, content=body, headers=JSON_TYPE)
        assert answer.status_code in (200, 400, 404, 422), body
        assert len(answer.content) < 1500 or answer.status_code == 200
        assert "Traceback" not in answer.text


def test_a_long_prompt_is_not_sent_back(client: httpx.Client) -> None:
    answer = client.post("/v1/generate", json={"prompt": "a" * 60 + "secret" * 6000})
    assert answer.status_code == 422
    assert "secret" not in answer.text
    assert "(36060 characters)" in answer.json()["error"]["message"]


def test_the_limit_is_where_it_says(client: httpx.Client) -> None:
    body = b'{"prompt": "a"}'
    fits = body + b" " * ((32 << 20) - len(body))
    assert client.post("/v1/generate", content=fits, headers=JSON_TYPE).status_code == 200
    answer = client.post("/v1/generate", content=fits + b" ", headers=JSON_TYPE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_large_body_has_large_values_and_not_many(client: httpx.Client) -> None:
    for inside, status in (
        (b"1," * (2 << 20), 413),
        (b"1," * (500_000), 200),
        (b'"' + b"1" * (4 << 20) + b'",', 200),
    ):
        body = b'{"prompt": "a", "n": 1, "ignored": [' + inside + b"1]}"
        answer = client.post("/v1/images/generations", content=body, headers=JSON_TYPE)
        assert answer.status_code == status, answer.text[:200]


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
def test_a_body_announced_as_too_large_is_refused_before_it_comes(url: str, expect: bytes) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=5) as end:
        head = b"POST /v1/generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        end.sendall(head + expect + b"Content-Length: 2000000000\r\n\r\n")
        assert end.recv(4096).startswith(b"HTTP/1.1 413")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_fault(url: str, engine: FakeEngine) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    before = len(engine.requests)

    def gone() -> str:
        metrics = httpx.get(f"{url}/metrics").text
        lines = [line for line in metrics.splitlines() if 'outcome="client_gone"' in line]
        return "\n".join(sorted(lines))

    was = gone()
    with socket.create_connection((host, int(port))) as end:
        head = b"POST /v1/generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        end.sendall(head + b'Content-Length: 100\r\n\r\n{"prompt"')
    wait_until(lambda: gone() != was)
    assert len(engine.requests) == before


def test_the_last_of_repeated_names_counts(client: httpx.Client, engine: FakeEngine) -> None:
    body = b'{"prompt": "a", "seed": 1, "prompt": "b", "seed": 2}'
    assert client.post("/v1/generate", content=body, headers=JSON_TYPE).status_code == 200
    assert (engine.last().prompt, engine.last().seed) == ("b", 2)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/json ;x"]
)
def test_spellings_of_the_content_type(client: httpx.Client, kind: str) -> None:
    body = b'{"prompt": "a"}'
    assert client.post("/v1/generate", content=body, headers={"Content-Type": kind}).status_code == 200


def test_a_body_without_a_type_is_refused(client: httpx.Client) -> None:
    answer = client.post("/v1/images/generations", content=b'{"prompt": "a"}')
    assert answer.status_code == 415
    assert answer.json()["error"]["message"] == 'content-type is ""; allowed: application/json'
