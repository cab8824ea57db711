"""The door: every route but the listed ones asks for a key, in every way that clients send one."""

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from structlog.testing import capture_logs

from server.app import Edge, assemble, open_jobs, sources_of
from server.engine import Engine
from server.generation import Priority
from server.http.auth import OPEN_ROUTES, Door
from server.idempotency import Answers
from server.keys import KeysFile, create
from server.metrics import Metrics
from server.quotas import Quotas
from server.settings import Settings
from tests.server.http.fake_engine import FakeEngine, serving, wait_until

BODY = {"prompt": "a"}
PATHS = ["/v1/generate", "/v1/images/generations"]


@dataclass
class World:
    engine: FakeEngine
    client: httpx.Client
    create: Callable[..., str]

    def post(self, secret: str | None = None, path: str = PATHS[0], **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", {}) | (
            {} if secret is None else {"Authorization": f"Bearer {secret}"}
        )
        return self.client.post(path, json=BODY | fields, headers=headers)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.toml"


@pytest.fixture(scope="module")
def world(file: Path) -> Iterator[World]:
    """One edge for all tests, each of which makes the keys that it needs."""

    def make(name: str, **limits: Any) -> str:
        return create(file, name, **limits)

    make("first")
    engine = FakeEngine()
    with (
        serving(engine, Edge(door=Door(KeysFile.read(file)))) as url,
        httpx.Client(base_url=url, timeout=20) as client,
    ):
        yield World(engine, client, make)


def routes(folder: Path) -> list[APIRoute]:
    """Every route of the application, found by looking into it."""
    metrics = Metrics()
    engine = cast(Engine, FakeEngine())
    settings = Settings(data_dir=folder)
    jobs, outputs = open_jobs(settings, engine, metrics, Quotas())
    sources = sources_of(settings, outputs)
    app = assemble(engine, metrics, Answers(0, metrics=metrics), jobs, outputs, sources)
    return [route for router in routers(app) for route in router if isinstance(route, APIRoute)]


def routers(app: FastAPI) -> Iterator[list[Any]]:
    for route in app.routes:
        yield getattr(getattr(route, "original_router", None), "routes", [route])


def test_every_route_but_the_listed_ones_asks_for_a_key(world: World, tmp_path: Path) -> None:
    found = {(method, route.path) for route in routes(tmp_path) for method in route.methods}
    assert {path for _, path in found} >= {*PATHS, "/metrics", "/v1/models", "/livez", "/docs"}
    for method, path in found:
        for headers in ({}, {"Authorization": "Bearer wrong"}):
            status = world.client.request(method, path, headers=headers).status_code
            assert (status == 401) == (path not in OPEN_ROUTES), f"{method} {path} is {status}"


@pytest.mark.parametrize("path", [*PATHS, "/v1/models", "/metrics"])
def test_who_has_no_key_is_told_how_to_send_one(world: World, path: str) -> None:
    answer = world.client.get(path) if path not in PATHS else world.post(path=path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == 'Bearer realm="schnell-server"'
    assert "Authorization: Bearer" in error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_a_key_may_be_sent_as_every_client_sends_it(world: World) -> None:
    secret = world.create("ways")
    ways: list[dict[str, str]] = [
        {"Authorization": f"Bearer {secret}"},
        {"Authorization": f"bearer   {secret}"},
        {"Authorization": f"Key {secret}"},
        {"Authorization": f"Token {secret}"},
        {"x-key": secret},
        {"X-API-Key": secret},
        basic("anyone", secret),
        basic("", secret),
        {"Authorization": f"Bearer {secret}", "x-key": "wrong"},
    ]
    for headers in ways:
        answer = world.client.post(PATHS[0], json=BODY, headers=headers)
        assert answer.status_code == 200, headers
        assert world.engine.requests[-1].key == "ways"


def test_what_is_no_key_is_refused_and_never_a_fault(world: World) -> None:
    secret = world.create("fine")
    headers: list[dict[str, str] | list[tuple[bytes, bytes]]] = [
        {"Authorization": secret},
        {"Authorization": f"Digest {secret}"},
        {"Authorization": f"Bearer {secret}x"},
        {"Authorization": f"Bearer {secret[:-1]}"},
        {"Authorization": f"Bearer {secret} {secret}"},
        {"Authorization": f"Bearer {secret.upper()}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer " + "x" * 10_000},
        {"Authorization": "Basic ===="},
        [(b"Authorization", "Basic é".encode())],
        [(b"Authorization", b"Bearer \xff\xfe\xc3\xa9")],
        [(b"x-key", b"\xc3\xa9")],
        basic(secret, ""),
        {"Authorization": "Bearer wrong", "x-key": secret},
        {"x-key": ""},
    ]
    for each in headers:
        answer = world.client.post(PATHS[0], json=BODY, headers=each)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), each
    in_address = world.client.get(PATHS[0], params={"prompt": "a", "api_key": secret, "key": secret})
    assert in_address.status_code == 401


def test_a_refusal_does_not_read_the_body_nor_make_a_picture(world: World) -> None:
    made = len(world.engine.requests)
    answer = world.client.post(PATHS[0], content=b"x" * 100_000, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 401
    assert len(world.engine.requests) == made


def test_the_log_has_the_keys_name_and_never_the_key(world: World) -> None:
    secret = world.create("logged")
    with capture_logs() as logs:
        answers = (world.post(secret), world.post(f"{secret}x"), world.post(secret, width=5))
        ids = [answer.headers["x-request-id"] for answer in answers]
        wait_until(lambda: {*ids} <= {line.get("request_id") for line in logs})
    found = {line.get("request_id"): line for line in logs if line["event"] == "request"}
    lines = [found[each] for each in ids]  # the line of a request before them may come late
    assert [(line.get("key"), line["outcome"]) for line in lines] == [
        ("logged", "ok"),
        (None, "invalid_api_key"),
        ("logged", "invalid_request"),
    ]
    assert secret not in str(logs)


def test_a_request_runs_in_the_class_of_its_key(world: World) -> None:
    low = world.create("low", priority="low")
    for path in PATHS:
        assert world.post(low, path).status_code == 200
        assert world.engine.requests[-1].priority is Priority.LOW
    answer = world.post(low, priority="high")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (403, "forbidden", "priority")
    high = world.create("high", priority="high")
    assert world.post(high, priority="low").status_code == 200
    assert world.engine.requests[-1].priority is Priority.LOW


@pytest.mark.parametrize("path", PATHS)
def test_too_many_requests_are_told_when_to_come_back(world: World, path: str) -> None:
    secret = world.create("often-" + path.rpartition("/")[2], requests_per_minute=2)
    first = world.post(secret, path)
    assert first.headers["ratelimit-policy"] == '"requests";q=2;w=60'
    assert first.headers["ratelimit"] == '"requests";r=1;t=0'
    assert world.post(secret, path).status_code == 200
    answer = world.post(secret, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (429, "rate_limited", "rate_limit_error")
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert answer.headers["x-should-retry"] == "true"
    assert answer.headers["ratelimit"].startswith('"requests";r=0;t=')
    assert world.client.get("/v1/models", headers={"x-key": secret}).status_code == 200, "costs nothing"


def test_no_more_requests_at_once_than_the_key_may_have(world: World) -> None:
    secret = world.create("busy", concurrent_requests=2)
    with ThreadPoolExecutor(2) as clients:
        made = len(world.engine.requests)
        held = [clients.submit(world.post, secret, prompt="hold", seed=seed) for seed in (1, 2)]
        wait_until(lambda: len(world.engine.requests) == made + 2)
        refused = world.post(secret)
        world.engine.released.set()
        assert [each.result().status_code for each in held] == [200, 200]
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert world.post(secret).status_code == 200
    assert world.post(secret, prompt="generation_failed").status_code == 500
    assert [world.post(secret).status_code for _ in range(3)] == [200] * 3, "failures are counted out too"


def test_a_client_that_leaves_is_counted_out(world: World) -> None:
    secret = world.create("leaving", concurrent_requests=1)
    with pytest.raises(httpx.ReadTimeout):
        world.client.post(PATHS[0], json={"prompt": "wait"}, headers={"x-key": secret}, timeout=0.2)
    wait_until(lambda: world.post(secret).status_code == 200)


def test_a_day_that_is_used_up_is_not_tried_again_at_once(world: World) -> None:
    secret = world.create("daily", device_seconds_per_day=2.0)
    world.engine.device_s = 1.5
    first, second, third = (world.post(secret) for _ in range(3))
    world.engine.device_s = 0.0
    assert first.headers["ratelimit-policy"] == '"device-seconds";q=2;w=86400'
    assert first.headers["ratelimit"].startswith('"device-seconds";r=0;t=')
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert third.json()["error"]["code"] == "quota_exceeded"
    assert third.headers["x-should-retry"] == "false"
    assert 1 <= int(third.headers["retry-after"]) <= 86_400


def test_an_answer_that_is_given_again_costs_no_device_seconds(world: World) -> None:
    secret = world.create("again", device_seconds_per_day=2.0)
    world.engine.device_s = 1.5
    again = [world.post(secret, headers={"Idempotency-Key": "k-1"}) for _ in range(4)]
    world.engine.device_s = 0.0
    assert [each.status_code for each in again] == [200] * 4
    assert len({each.content for each in again}) == 1


def test_idempotency_keys_belong_to_an_api_key_however_it_is_sent(world: World) -> None:
    one, two = world.create("one"), world.create("two")
    key = {"Idempotency-Key": "same"}
    made = len(world.engine.requests)
    first = world.post(one, headers=key)
    again = world.client.post(PATHS[0], json=BODY, headers=key | {"x-key": one})
    other = world.post(two, headers=key, prompt="b")
    assert again.content == first.content
    assert again.headers["idempotent-replayed"] == "true"
    assert (other.status_code, len(world.engine.requests)) == (200, made + 2)


def test_no_shared_cache_keeps_what_a_key_was_asked_for(world: World) -> None:
    headers = {"x-key": world.create("cached")}
    answer = world.client.get(PATHS[0], params={"prompt": "a", "seed": 1}, headers=headers)
    assert answer.headers["cache-control"] == "private, max-age=3600"


def test_the_description_says_that_a_key_is_asked_for(world: World) -> None:
    described = world.client.get("/openapi.json").json()
    assert described["security"] == [{"key": []}]
    assert described["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    with serving(FakeEngine()) as url:
        assert "security" not in httpx.get(f"{url}/openapi.json").json()


def test_a_browser_on_an_allowed_page_may_call_and_read_failures() -> None:
    page = "https://a.example"
    with serving(FakeEngine(), Edge(cors_origins=(page,))) as url, capture_logs():
        asked = {"Origin": page, "Access-Control-Request-Method": "POST"}
        headers = asked | {"Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}
        preflight = httpx.options(url + PATHS[1], headers=headers)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == page
        assert preflight.headers["access-control-allow-headers"] == headers["Access-Control-Request-Headers"]
        for prompt, status in (("a", 200), ("overloaded", 429), ("fault", 500)):
            answer = httpx.post(url + PATHS[1], json={"prompt": prompt}, headers={"Origin": page})
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, page)
            assert "X-Request-Id" in answer.headers["access-control-expose-headers"]
            assert "access-control-allow-credentials" not in answer.headers
        other = asked | {"Origin": "https://b.example"}
        assert httpx.options(url + PATHS[1], headers=other).status_code == 400
        assert (
            "access-control-allow-origin" not in httpx.post(url + PATHS[1], json=BODY, headers=other).headers
        )
    with serving(FakeEngine()) as url:
        assert httpx.options(url + PATHS[1], headers=asked).status_code == 405
