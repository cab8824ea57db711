"""Whatever a client sends is answered with 4xx, in one shape, naming what was wrong."""

import json
import re
import socket
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.conftest import Server

JSON = {"Content-Type": "application/json"}
LEAKS = re.compile(r"Traceback|File \"|site-packages|/server/|/model/|0x[0-9a-f]{8}")

FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": "a\0b"}, "prompt"),
    ({"prompt": "a\x07b"}, "prompt"),
    ({"prompt": "a\x1b[31mb"}, "prompt"),
    ({"prompt": "a\x85b"}, "prompt"),
    ({"prompt": "a" * 100_000}, "prompt"),
    ({"prompt": "é" * 32_001}, "prompt"),
    ({"negative_prompt": "a\0"}, "negative_prompt"),
    ({"negative_prompt": 1}, "negative_prompt"),
    ({"width": 250}, "width"),
    ({"width": 240}, "width"),
    ({"width": 1552}, "width"),
    ({"width": 0}, "width"),
    ({"width": -256}, "width"),
    ({"width": 256.0}, "width"),
    ({"width": "256"}, "width"),
    ({"width": True}, "width"),
    ({"width": 10**30}, "width"),
    ({"height": 257}, "height"),
    ({"height": 2048}, "height"),
    ({"height": [256]}, "height"),
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_inference_steps": -1}, "num_inference_steps"),
    ({"num_inference_steps": 13}, "num_inference_steps"),
    ({"num_inference_steps": 10**100}, "num_inference_steps"),
    ({"num_inference_steps": 2.5}, "num_inference_steps"),
    ({"num_inference_steps": "four"}, "num_inference_steps"),
    ({"num_inference_steps": True}, "num_inference_steps"),
    ({"guidance_scale": -1}, "guidance_scale"),
    ({"guidance_scale": 20.5}, "guidance_scale"),
    ({"guidance_scale": "3"}, "guidance_scale"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**53}, "seed"),
    ({"seed": 2**64}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"seed": 2**53 - 1, "num_images": 2}, "seed"),
    ({"num_images": 0}, "num_images"),
    ({"num_images": 9}, "num_images"),
    ({"num_images": "2"}, "num_images"),
    ({"max_sequence_length": 15}, "max_sequence_length"),
    ({"max_sequence_length": 513}, "max_sequence_length"),
    ({"max_sequence_length": "long"}, "max_sequence_length"),
    ({"output_format": "gif"}, "output_format"),
    ({"output_format": "PNG"}, "output_format"),
    ({"output_format": 1}, "output_format"),
    ({"output_quality": 0}, "output_quality"),
    ({"output_quality": 101}, "output_quality"),
    ({"embed_prompt": "yes"}, "embed_prompt"),
    ({"embed_prompt": 1}, "embed_prompt"),
    ({"priority": "urgent"}, "priority"),
    ({"priority": 1}, "priority"),
    ({"deadline_ms": 0}, "deadline_ms"),
    ({"deadline_ms": 3_600_001}, "deadline_ms"),
    ({"deadline_ms": 1.5}, "deadline_ms"),
    ({"image": "data:image/png;base64,AAAA"}, "image"),
    ({"mask_image": "data:image/png;base64,AAAA"}, "mask_image"),
    ({"strength": 0.5}, "strength"),
    ({"steps": 4}, "steps"),
    ({"Prompt": "a"}, "Prompt"),
    ({"": 1}, ""),
    ({"x" * 1000: 1}, "x"),
    ({"__proto__": {}}, "__proto__"),
]
RAW: list[tuple[bytes, int, str | None]] = [
    (b"", 400, None),
    (b"null", 400, None),
    (b"[]", 400, None),
    (b'"a cat"', 400, None),
    (b"{", 400, None),
    (b'{"prompt": "a"', 400, None),
    (b'{"prompt": "a",}', 400, None),
    (b"{'prompt': 'a'}", 400, None),
    (b'{"prompt": "a\xff"}', 400, None),
    (b"\xef\xbb\xbf{}", 400, None),
    ('{"prompt": "a"}'.encode("utf-16"), 400, None),
    (b'{"prompt": "\\ud800"}', 400, None),
    (b'{"prompt": "\\ud800\\u0041"}', 400, None),
    (b'{"prompt": "a\nb"}', 400, None),
    (b"[" * 100_000, 400, None),
    (b'{"prompt":' * 50_000, 400, None),
    (b'{"prompt": "a", "width": NaN}', 422, "width"),
    (b'{"prompt": "a", "guidance_scale": Infinity}', 422, "guidance_scale"),
    (b'{"prompt": "a", "guidance_scale": 1e999}', 422, "guidance_scale"),
    (b'{"prompt": "a", "seed": %s}' % (b"9" * 4000), 422, "seed"),
    (b'{"prompt": "a", "seed": -0.0}', 422, "seed"),
    (b"{}", 422, "prompt"),
]


def post(server: Server, content: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/generate", content=content, headers=JSON | headers, timeout=60)


def assert_clear(response: httpx.Response, status: int, field: str | None) -> None:
    assert response.status_code == status, response.text[:300]
    error = response.json()["error"]
    assert set(error) == {"code", "type", "message", "param", "request_id", "retryable"}
    assert error["type"] == "invalid_request_error"
    assert error["request_id"] == response.headers["x-request-id"]
    assert not error["retryable"]
    assert not LEAKS.search(response.text)
    assert len(response.content) < 1500
    if field is not None:
        assert error["param"].startswith(field)
        assert field in error["message"]


@pytest.mark.parametrize(("fields", "named"), FIELDS, ids=lambda value: repr(value)[:40])
def test_a_wrong_field_is_named_with_what_is_allowed(
    server: Server, fields: dict[str, Any], named: str
) -> None:
    response = post(server, json.dumps({"prompt": "a cat"} | fields).encode())
    assert_clear(response, 422, named)
    message = response.json()["error"]["message"]
    assert "allowed: " in message or "not supported" in message


@pytest.mark.parametrize(("content", "status", "named"), RAW, ids=lambda value: repr(value)[:40])
def test_a_body_that_is_no_request_is_refused(
    server: Server, content: bytes, status: int, named: str | None
) -> None:
    assert_clear(post(server, content), status, named)


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({"Content-Type": "text/plain"}, "content-type"),
        ({"Content-Type": ""}, "content-type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "content-type"),
        ({"Content-Type": "multipart/mixed; boundary=x"}, "content-type"),
        ({"Content-Type": "application/jsonp"}, "content-type"),
        ({"Content-Encoding": "gzip"}, "content-encoding"),
    ],
    ids=str,
)
def test_a_body_of_another_type_is_refused(server: Server, headers: dict[str, str], named: str) -> None:
    assert_clear(post(server, b'{"prompt": "a"}', **headers), 415, named)


def test_a_large_body_is_refused_without_being_read(server: Server) -> None:
    def chunks() -> Any:
        for _ in range(1000):
            yield b" " * 65536

    try:
        response = httpx.post(f"{server.url}/v1/generate", content=chunks(), headers=JSON, timeout=60)
    except httpx.WriteError:
        return  # refused and closed while it was still being sent
    assert_clear(response, 413, None)


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("", "prompt"),
        ("prompt=a&width=abc", "width"),
        ("prompt=a&width=250", "width"),
        ("prompt=a&seed=-1", "seed"),
        ("prompt=a&num_images=2", "num_images"),
        ("prompt=a%00", "prompt"),
        ("prompt=a&guidance_scale=nan", "guidance_scale"),
        ("prompt=a&hight=256", "hight"),
    ],
)
def test_a_wrong_query_is_named(server: Server, query: str, named: str) -> None:
    assert_clear(httpx.get(f"{server.url}/v1/generate?{query}"), 422, named)


def test_several_pictures_need_json(server: Server) -> None:
    response = post(server, b'{"prompt": "a", "num_images": 2}', Accept="image/png")
    assert_clear(response, 422, "num_images")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "/v1/generate", 405),
        ("PUT", "/v1/generate", 405),
        ("TRACE", "/v1/generate", 405),
        ("POST", "/metrics", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/generate/", 404),
        ("GET", "/v1/models/none", 404),
        ("GET", "/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/%00", 404),
    ],
)
def test_paths_and_methods_that_are_not_there(server: Server, method: str, path: str, status: int) -> None:
    response = httpx.request(method, f"{server.url}{path}")
    assert_clear(response, status, None)
    if status == 405:
        assert "GET" in response.headers["allow"]


def speak(server: Server, data: bytes) -> bytes:
    """Send bytes on a fresh connection and return everything until it is closed."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as end:
        end.settimeout(20)
        answer = b""
        try:
            end.sendall(data)
            while received := end.recv(65536):
                answer += received
        except (ConnectionResetError, BrokenPipeError):
            pass
        return answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 300_000, 431),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"a" * 300_000, 431),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
            400,
        ),
        (b"POST /v1/generate HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"NONSENSE\r\n\r\n", 400),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_what_is_hardly_http_is_refused_in_the_same_shape(server: Server, data: bytes, status: int) -> None:
    head, _, body = speak(server, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d" % status)
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@settings(max_examples=150, deadline=None)
@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["width", "seed", "image", "prompt", "x"]), inner, max_size=4
                )
            ),
            max_leaves=6,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_body_is_answered_with_a_fault_of_the_server(server: Server, body: bytes) -> None:
    response = post(server, body)
    assert response.status_code == 200 or 400 <= response.status_code < 500
    assert not LEAKS.search(response.text[:2000])


def test_the_server_is_well_after_all_that(server: Server) -> None:
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert "Traceback" not in server.log
    assert "unexpected" not in server.log
