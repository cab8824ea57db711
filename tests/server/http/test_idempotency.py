"""`Idempotency-Key` on POST: a retry gets the same bytes, and a key belongs to one request of one client."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.server.http.fake_engine import FAILURES, FakeEngine, serving, wait_until

PATHS = ["/v1/generate", "/v1/images/generations"]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[httpx.Client]:
    with serving(engine) as url, httpx.Client(base_url=url, timeout=20) as made:
        yield made


def post(
    client: httpx.Client, key: str | None = "k-1", path: str = "/v1/generate", **fields: Any
) -> httpx.Response:
    headers = fields.pop("headers", {}) | ({} if key is None else {"Idempotency-Key": key})
    return client.post(path, json={"prompt": "a"} | fields, headers=headers)


@pytest.mark.parametrize(("path", "several"), [(PATHS[0], {"num_images": 2}), (PATHS[1], {"n": 2})])
def test_a_retry_gets_the_same_bytes_also_of_a_drawn_seed(
    client: httpx.Client, engine: FakeEngine, path: str, several: dict[str, int]
) -> None:
    first, again = (post(client, path=path, **several) for _ in range(2))
    assert (again.status_code, again.content) == (200, first.content)
    assert len(engine.requests) == 1
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert "flux_idempotent_replays_total 1.0" in client.get("/metrics").text


def test_a_picture_itself_comes_again_with_its_seed(client: httpx.Client) -> None:
    first, again = (post(client, headers={"Accept": "image/webp"}) for _ in range(2))
    assert first.content == again.content
    assert first.headers["x-seed"] == again.headers["x-seed"]
    assert again.headers["content-type"] == "image/webp"


def test_without_a_key_every_request_is_its_own(client: httpx.Client, engine: FakeEngine) -> None:
    assert post(client, None).content != post(client, None).content
    assert len(engine.requests) == 2


def test_the_same_key_in_quotes_is_the_same_key(client: httpx.Client, engine: FakeEngine) -> None:
    for key in ("k-1", '"k-1"'):
        assert post(client, key).status_code == 200
    assert len(engine.requests) == 1
    post(client, r'"k\"\\1"')
    post(client, '"k 1"')
    assert len(engine.requests) == 3


def test_the_same_body_may_be_written_in_another_way(client: httpx.Client, engine: FakeEngine) -> None:
    post(client, seed=1, width=256)
    again = client.post(
        "/v1/generate",
        content=b'{"width": 256,\n"seed": 1, "prompt": "\\u0061"}',
        headers={"Idempotency-Key": "k-1", "Content-Type": "application/json"},
    )
    assert again.headers["idempotent-replayed"] == "true"
    assert len(engine.requests) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "b"},
        {"seed": 1},
        {"priority": "low"},
        {"headers": {"Accept": "image/png"}},
        {"path": "/v1/images/generations"},
    ],
    ids=str,
)
def test_a_key_of_another_request_is_refused(
    client: httpx.Client, engine: FakeEngine, changes: dict[str, Any]
) -> None:
    first = post(client)
    answer = post(client, **changes)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "idempotency_key_reused")
    assert error["param"] == "idempotency-key"
    assert "idempotency-key was used for another request" in error["message"]
    assert not error["retryable"]
    assert len(engine.requests) == 1
    assert post(client).content == first.content


def test_keys_of_two_clients_do_not_meet(client: httpx.Client, engine: FakeEngine) -> None:
    for authorization in ("Bearer one", "Bearer two"):
        headers = {"Authorization": authorization}
        assert post(client, prompt=authorization, headers=headers).status_code == 200
        assert post(client, prompt=authorization, headers=headers).headers["idempotent-replayed"] == "true"
    assert post(client, prompt="nobody").status_code == 200
    assert len(engine.requests) == 3


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["", '""', '"open', "two words", "a,b", 'a"b', "a\\b", "é", "a" * 256])
def test_a_malformed_key_is_named(client: httpx.Client, engine: FakeEngine, path: str, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode("latin-1")}
    answer = client.post(path, json={"prompt": "a"}, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "malformed_header")
    assert error["param"] == "idempotency-key"
    assert "idempotency-key" in error["message"]
    assert "allowed: one key of 1 to 255" in error["message"]
    assert len(answer.content) < 1000
    assert not engine.requests


def test_two_keys_are_one_too_many(client: httpx.Client) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    assert client.post("/v1/generate", json={"prompt": "a"}, headers=headers).status_code == 400


def test_the_longest_key_is_allowed(client: httpx.Client) -> None:
    assert post(client, "a" * 255).status_code == 200
    assert post(client, '"' + '\\"' * 255 + '"').status_code == 200


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_a_failure_of_the_server_is_not_kept(client: httpx.Client, engine: FakeEngine, name: str) -> None:
    for attempt in (1, 2):
        answer = post(client, prompt=name)
        assert answer.json()["error"]["code"] == ("internal_error" if name == "fault" else name)
        assert "idempotent-replayed" not in answer.headers
        assert len(engine.requests) == attempt


def test_a_request_that_was_refused_leaves_its_key_free(client: httpx.Client) -> None:
    assert post(client, width=5).status_code == 422
    assert post(client).status_code == 200


def test_a_retry_during_the_first_waits_for_it(client: httpx.Client, engine: FakeEngine) -> None:
    with ThreadPoolExecutor(50) as clients:
        asked = [clients.submit(post, client, prompt="hold") for _ in range(50)]
        wait_until(lambda: bool(engine.requests))
        other = post(client, prompt="another")
        assert other.status_code == 422, "of another body also while the first still runs"
        engine.released.set()
        answers = [each.result() for each in asked]
    assert {answer.content for answer in answers} == {answers[0].content}
    assert len(engine.requests) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    counted = 'flux_requests_total{outcome="ok",route="/v1/generate"} 50.0'
    wait_until(lambda: counted in client.get("/metrics").text)  # an answer is out before it is counted
    text = client.get("/metrics").text
    assert "flux_idempotent_replays_total 49.0" in text
    assert "flux_request_denoise_seconds_count 1.0" in text, "made once, so accounted for once"


def leave(client: httpx.Client, prompt: str) -> "Future[httpx.Response]":
    with ThreadPoolExecutor(1) as clients:
        headers = {"Idempotency-Key": "k-1"}
        leaving = clients.submit(
            client.post, "/v1/generate", json={"prompt": prompt}, headers=headers, timeout=0.3
        )
    assert isinstance(leaving.exception(), httpx.ReadTimeout)
    return leaving


def test_a_client_that_lost_its_connection_comes_back_to_the_same_run(
    client: httpx.Client, engine: FakeEngine
) -> None:
    with ThreadPoolExecutor(1) as clients:
        stays = clients.submit(post, client, prompt="hold")
        wait_until(lambda: bool(engine.requests))
        leave(client, "hold")
        engine.released.set()
        assert stays.result().status_code == 200
    assert post(client, prompt="hold").content == stays.result().content
    assert len(engine.requests) == 1


def test_the_first_may_leave_while_a_retry_waits(client: httpx.Client, engine: FakeEngine) -> None:
    with ThreadPoolExecutor(2) as clients:
        first = clients.submit(leave, client, "hold")
        wait_until(lambda: bool(engine.requests))
        retry = clients.submit(post, client, prompt="hold")
        first.result()
        wait_until(lambda: 'outcome="client_gone"' in client.get("/metrics").text)
        engine.released.set()
        answer = retry.result()
    assert (answer.status_code, answer.headers["idempotent-replayed"]) == (200, "true")
    assert len(engine.requests) == 1


def test_when_all_have_left_the_work_ends_and_the_key_is_free(
    client: httpx.Client, engine: FakeEngine
) -> None:
    leave(client, "wait")
    wait_until(lambda: len(engine.cancelled) == 1)
    assert post(client, prompt="another").status_code == 200


def test_the_official_client_retries_into_the_same_answer(client: httpx.Client, engine: FakeEngine) -> None:
    with openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="one", max_retries=0) as api:
        key = {"Idempotency-Key": "k-1"}
        first, again = (api.images.generate(prompt="a", extra_headers=key) for _ in range(2))
        assert first == again
        assert len(engine.requests) == 1
        with pytest.raises(openai.UnprocessableEntityError):
            api.images.generate(prompt="b", extra_headers=key)
        with pytest.raises(openai.BadRequestError) as caught:
            api.images.generate(prompt="b", extra_headers={"Idempotency-Key": "two words"})
        assert caught.value.param == "idempotency-key"
