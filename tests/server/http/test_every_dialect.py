"""Every dialect in every situation: one table of what is answered, and in which shape.

One server with keys and short bodies, each dialect asked as its clients ask, each with its own way of sending
the key. What a dialect alone has is in a file of its own.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import pytest
import standardwebhooks
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from server.app import Edge
from server.http.auth import Door
from server.keys import KeysFile, create
from server.settings import DIALECTS
from tests.e2e.receiver import receiving
from tests.server.http.dialects import (
    ALL,
    AUTOMATIC1111,
    BFL,
    COG,
    FAL_QUEUE,
    FAL_RUN,
    REPLICATE,
    Dialect,
    completed,
    kind_of,
    told,
)
from tests.server.http.fake_engine import FAILURES, FakeEngine, serving, wait_until
from tests.server.models import MODEL

BODY_BYTES = 4000
FAILURE_NAMES = (
    "overloaded",
    "not_ready",
    "worker_lost",
    "deadline_exceeded",
    "generation_failed",
    "out_of_memory",
    "fault",
)
# What is asked for at the door is refused with a status; what fails later is what the dialect makes of it.
ENDED = {
    "openai": ("429", "503", "503", "504", "500", "500", "500"),
    "huggingface": ("429", "500", "500", "504", "500", "500", "500"),  # never 503: clients would not wait
    "automatic1111": ("429", "503", "503", "504", "500", "500", "500"),
    "cog": ("409", "503", "503", "504", "200 failed", "200 failed", "500"),
    "replicate": ("429", "503", *["201 failed"] * 5),
    "fal run": ("429", "503", "503", "504", "500", "500", "500"),
    "fal queue": ("429", "503", *["200 COMPLETED 500"] * 5),
    "bfl": ("429", "503", *["200 Error"] * 5),
}
#                 wrong value, no JSON, another type, too long
BAD = {
    "openai": (400, 400, 415, 413),
    "huggingface": (422, 422, 415, 413),
    "automatic1111": (422, 400, 415, 413),
    "cog": (422, 400, 415, 413),
    "replicate": (422, 400, 415, 413),
    "fal run": (422, 422, 415, 413),
    "fal queue": (422, 422, 415, 413),
    "bfl": (422, 422, 415, 413),
}
FORMATS = {"cog": "WEBP", "replicate": "WEBP", "fal run": "JPEG", "fal queue": "JPEG", "bfl": "JPEG"}
# While the model is loaded: refused, taken in, or held until it is there.
LOADING = {
    "openai": "503",
    "huggingface": "held",
    "automatic1111": "503",
    "cog": "503",
    "replicate": "starting",
    "fal run": "503",
    "fal queue": "IN_QUEUE",
    "bfl": "Pending",
}
OUTLIVES_ITS_CLIENT = ("replicate", "fal queue", "bfl")

every_dialect = pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.name)


@dataclass
class World:
    url: str
    engine: FakeEngine
    secret: str

    def client(self, dialect: Dialect) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=20, headers=dialect.key(self.secret))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    secret = create(file, "me")
    engine, edge = FakeEngine(), Edge(door=Door(KeysFile.read(file)), max_body_bytes=BODY_BYTES)
    with serving(engine, edge, webhook_allow_networks="127.0.0.0/8") as url:
        yield World(url, engine, secret)


@every_dialect
def test_pictures_are_made_one_and_many(world: World, dialect: Dialect) -> None:
    with world.client(dialect) as client:
        for count in {1, min(3, dialect.most), dialect.most}:
            pictures = dialect.pictures(client, dialect.ask(client, "a cat", count=count))
            assert [kind_of(each) for each in pictures] == [FORMATS.get(dialect.name, "PNG")] * count
            asked = world.engine.last()
            assert (asked.num_images, asked.seed, asked.key) == (count, 7, "me")


@pytest.mark.parametrize(
    ("dialect", "mask", "image"),
    [
        (COG, "input.mask", "input.image"),
        (REPLICATE, "input.mask", "input.image"),
        (FAL_RUN, "mask_url", "image_url"),
        (FAL_QUEUE, "mask_url", "image_url"),
        (BFL, "mask", "image_prompt"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_mask_without_its_picture_is_refused(world: World, dialect: Dialect, mask: str, image: str) -> None:
    body = dialect.body("a", 1)
    body.get("input", body)[mask.removeprefix("input.")] = "data:image/png;base64,AAAA"
    with world.client(dialect) as client:
        answer = dialect.ask(client, "a", json=body)
    assert answer.status_code == 422
    said = f"{mask} is given without {image}; allowed: only with {image}"
    assert said in dialect.complaint(answer)


@every_dialect
def test_failures_are_what_clients_take_them_for(world: World, dialect: Dialect) -> None:
    with world.client(dialect) as client:
        for name, expected in zip(FAILURE_NAMES, ENDED[dialect.name], strict=True):
            answer = dialect.ask(client, name)
            assert dialect.ended(client, answer) == expected, name
            assert "secret" not in answer.text
            if answer.status_code < 400:
                continue
            said = dialect.complaint(answer)
            assert (said == str(FAILURES[name])) == (name != "fault")
            wait_s = {"overloaded": "8", "not_ready": "2", "worker_lost": "1"}.get(name)
            assert answer.headers.get("retry-after") == wait_s
            if answer.status_code >= 429:
                assert answer.headers["x-should-retry"] == str(wait_s is not None).lower()


@every_dialect
def test_bad_input_is_refused_in_the_dialect_s_shape(world: World, dialect: Dialect) -> None:
    before = len(world.engine.requests)
    with world.client(dialect) as client:
        wrong = dialect.ask(client, "a", json=dialect.wrong)
        kind = dialect.headers | {"Content-Type": "application/json"}
        broken = client.post(dialect.path, content=b"{", headers=kind)
        other = client.post(dialect.path, content=b"{}", headers=dialect.headers)
        long = dialect.ask(client, "a" * BODY_BYTES)
        answers = (wrong, broken, other, long)
        assert tuple(answer.status_code for answer in answers) == BAD[dialect.name]
        assert f"{dialect.named} is " in dialect.complaint(wrong)
        assert "the body is not a JSON object" in dialect.complaint(broken)
        assert "content-type" in dialect.complaint(other)
        assert f"the limit of {BODY_BYTES} bytes" in dialect.complaint(long)
    assert len(world.engine.requests) == before


@every_dialect
def test_what_no_route_takes_is_answered_in_the_dialect_s_shape(world: World, dialect: Dialect) -> None:
    below = {"openai": "/v1/images/nothing", "replicate": "/v1/predictions/a/b", "bfl": "/bfl/v1/a/b"}
    with world.client(dialect) as client:
        nothing = client.get(below.get(dialect.name, f"{dialect.path}/a/b/c/d/e"))
        assert nothing.status_code == 404
        assert "there is nothing at this path" in dialect.complaint(nothing)
        path = "/v1/predictions" if dialect is REPLICATE else dialect.path
        method = client.request("DELETE", path)
        assert method.status_code == 405
        assert "POST" in method.headers["allow"]
        assert dialect.complaint(method).endswith(f"allowed: {method.headers['allow']}")


@every_dialect
def test_a_bad_key_is_refused_in_the_dialect_s_shape(world: World, dialect: Dialect) -> None:
    for headers in ({}, dialect.key("wrong")):
        with httpx.Client(base_url=world.url, headers=headers) as client:
            answer = dialect.ask(client, "a")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer ")
        assert "API key" in dialect.complaint(answer)


@every_dialect
def test_a_client_that_goes_away_ends_what_nobody_asks_after(world: World, dialect: Dialect) -> None:
    before = len(world.engine.cancelled)
    with world.client(dialect) as client:
        if dialect.name in OUTLIVES_ITS_CLIENT:
            with world.client(dialect) as leaving:
                dialect.ask(leaving, "wait", headers={"Prefer": ""})
            held = world.engine.requests[-1]
            dialect.ask(client, "a")
            assert held not in world.engine.cancelled
        else:
            with pytest.raises(httpx.ReadTimeout):
                dialect.ask(client, "wait", timeout=0.3)
            wait_until(lambda: len(world.engine.cancelled) > before)


@every_dialect
def test_before_the_model_is_loaded(dialect: Dialect) -> None:
    engine = FakeEngine(model_info=None, ready=False)
    with serving(engine) as url, httpx.Client(base_url=url) as client, ThreadPoolExecutor(1) as thread:
        asked = thread.submit(dialect.ask, client, "a", headers={"Prefer": ""})
        if LOADING[dialect.name] == "held":
            wait_until(lambda: engine.waiting_for_model == 1)
            assert not asked.done()
            engine.model_info, engine.ready = MODEL, True
            assert asked.result().status_code == 200
        elif LOADING[dialect.name] == "503":
            assert asked.result().status_code == 503
            assert 1 <= int(asked.result().headers["retry-after"]) <= 120
            assert dialect.complaint(asked.result()) == "the model is still being loaded"
        else:
            assert asked.result().status_code in (200, 201)
            content = asked.result().json()
            found = client.get(content["polling_url"]).json() if dialect is BFL else content
            assert found["status"] == LOADING[dialect.name]
        assert client.get("/health-check").json()["status"] in ("STARTING", "READY")


Begin = Callable[..., "Future[httpx.Response]"]
Story = Callable[[World, httpx.Client, Begin], list[object]]


def automatic1111_story(world: World, client: httpx.Client, begin: Begin) -> list[object]:
    before = len(world.engine.requests)
    asked = begin(AUTOMATIC1111.ask, client, "wait")
    wait_until(lambda: len(world.engine.requests) > before)
    wait_until(lambda: client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 1)
    progress = client.get("/sdapi/v1/progress").json()["progress"]
    return [progress, client.post("/sdapi/v1/interrupt").status_code, asked.result().status_code]


def cog_story(world: World, client: httpx.Client, begin: Begin) -> list[object]:
    before = len(world.engine.requests)
    asked = begin(client.put, "/predictions/mine", json=COG.body("wait", 1))
    wait_until(lambda: len(world.engine.requests) > before)
    again = client.put("/predictions/mine", json=COG.body("wait", 1))
    cancelled = client.post("/predictions/mine/cancel")
    return [
        *(again.status_code, again.json()["status"], cancelled.status_code),
        *(COG.ended(client, asked.result()), client.post("/predictions/mine/cancel").status_code),
    ]


def replicate_story(world: World, client: httpx.Client, begin: Begin) -> list[object]:
    waited = REPLICATE.ask(client, "wait", headers={"Prefer": "wait=1"})
    urls = waited.json()["urls"]
    asked = [client.get(urls["get"]), client.post(urls["cancel"]), client.get(urls["get"])]
    return [REPLICATE.ended(client, each) for each in (waited, *asked)]


def fal_run_story(world: World, client: httpx.Client, begin: Begin) -> list[object]:
    late = FAL_RUN.ask(client, "wait", headers={"X-Fal-Request-Timeout": "0.05"})
    return [late.status_code, late.headers["x-fal-request-timeout-type"]]


def fal_queue_story(world: World, client: httpx.Client, begin: Begin) -> list[object]:
    submitted = FAL_QUEUE.ask(client, "wait").json()
    status, early = client.get(submitted["status_url"]), client.get(submitted["response_url"])
    cancelled = client.put(submitted["cancel_url"]).json()["status"]
    state = completed(client, submitted)["error_type"]
    result = client.get(submitted["response_url"]).status_code
    late = FAL_QUEUE.ask(client, "wait", headers={"X-Fal-Request-Timeout": "0.05"})
    return [
        *(status.status_code, status.json()["status"], early.status_code),
        *(cancelled, state, result, FAL_QUEUE.ended(client, late)),
    ]


def bfl_story(world: World, client: httpx.Client, begin: Begin) -> list[object]:
    submitted = BFL.ask(client, "wait").json()
    return [client.get(submitted["polling_url"]).json()["status"]]  # there is no cancel


STORIES = [
    (AUTOMATIC1111, automatic1111_story, [0.5, 200, 499]),
    (COG, cog_story, [202, "processing", 200, "200 canceled", 404]),
    (REPLICATE, replicate_story, ["202 starting", "200 starting", "200 canceled", "200 canceled"]),
    (FAL_RUN, fal_run_story, [504, "user"]),
    (FAL_QUEUE, fal_queue_story, [202, "IN_QUEUE", 400, "OK", "client_cancelled", 499, "200 COMPLETED 504"]),
    (BFL, bfl_story, ["Pending"]),
]


@pytest.mark.parametrize(
    ("dialect", "story", "expected"), STORIES, ids=[dialect.name for dialect, _, _ in STORIES]
)
def test_a_wait_that_runs_out_asking_after_and_cancelling(
    world: World, dialect: Dialect, story: Story, expected: list[object]
) -> None:
    """OpenAI and Hugging Face have none of them: a client that goes away has cancelled."""
    with world.client(dialect) as client, ThreadPoolExecutor(1) as thread:
        assert story(world, client, thread.submit) == expected


HOOKS = [
    (COG, "webhook", "succeeded", "failed"),
    (REPLICATE, "webhook", "succeeded", "failed"),
    (FAL_QUEUE, "fal_webhook", "OK", "ERROR"),
    (BFL, "webhook_url", "Ready", "Error"),
]


@pytest.mark.parametrize(("dialect", "hook", "good", "bad"), HOOKS, ids=[each[0].name for each in HOOKS])
def test_a_webhook_tells_how_it_ended_and_who_calls(
    world: World, dialect: Dialect, hook: str, good: str, bad: str
) -> None:
    with world.client(dialect) as client, receiving() as receiver:
        for prompt, word in (("a", good), ("generation_failed", bad)):
            receiver.calls.clear()
            asked = {"params": {hook: receiver.url}} if dialect is FAL_QUEUE else {}
            body = dialect.body(prompt, 1) | ({} if asked else {hook: receiver.url})
            assert dialect.ask(client, prompt, json=body, **asked).status_code in (200, 201)
            wait_until(lambda: any(told(body)["status"] == word for _, body in list(receiver.calls)))  # noqa: B023
        headers, body = receiver.calls[-1]
        secret = client.get("/v1/webhooks/default/secret").json()["key"]
        standardwebhooks.Webhook(secret).verify(body, headers)
        if dialect is FAL_QUEUE:
            verify_as_fal_s_receivers_do(httpx.get(f"{world.url}/.well-known/jwks.json"), headers, body)
        for wrong in ("ftp://a.example/", "http://169.254.169.254/"):
            asked = {"params": {hook: wrong}} if dialect is FAL_QUEUE else {}
            refused = dialect.ask(client, "a", json=dialect.body("a", 1) | {hook: wrong}, **asked)
            assert (refused.status_code, hook in dialect.complaint(refused)) == (422, True)


def verify_as_fal_s_receivers_do(jwks: httpx.Response, headers: dict[str, str], body: bytes) -> None:
    """The steps of fal's documentation; raises `InvalidSignature`."""
    assert "no-store" not in jwks.headers["cache-control"]
    (key,) = jwks.json()["keys"]
    named = [headers[f"x-fal-webhook-{name}"] for name in ("request-id", "user-id", "timestamp")]
    assert named[:2] == [json.loads(body)["request_id"], "me"]
    message = "\n".join([*named, hashlib.sha256(body).hexdigest()]).encode()
    public = base64.urlsafe_b64decode(key["x"] + "=" * (-len(key["x"]) % 4))
    signature = bytes.fromhex(headers["x-fal-webhook-signature"])
    Ed25519PublicKey.from_public_bytes(public).verify(signature, message)


def test_every_dialect_is_in_every_table() -> None:
    names = {dialect.name for dialect in ALL}
    assert names == set(ENDED) == set(BAD) == set(LOADING)
    assert {name.partition(" ")[0] for name in names} == set(DIALECTS)
