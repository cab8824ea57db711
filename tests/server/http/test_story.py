"""Server-sent events on a real socket: what happens is told as it happens, and leaving ends the work."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from fastapi.sse import KEEPALIVE_COMMENT

from server.generation import Forecast, GenerationResult
from server.http.event_stream import kept_alive
from server.http.exchange import Exchange
from server.http.native_answer import NativeScript
from server.http.story import Story
from server.roster import Watch
from tests.server.http.fake_engine import PREVIEW, FakeEngine, picture, serving, wait_until
from tests.server.http.test_native import PLAIN

EVENTS = {"Accept": "text/event-stream"}
SHOWN = base64.b64encode(PREVIEW).decode()

Event = tuple[str, Any]  # its name, and its data


def events(answer: httpx.Response) -> list[Event]:
    """Read a stream as the HTML standard has it, strictly."""
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *blocks, rest = answer.text.split("\n\n")
    assert not rest
    found: list[Event] = []
    for block in blocks:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def ask(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/generate", json={"prompt": "a", "seed": 1} | body, headers=EVENTS)


@contextmanager
def reading(client: httpx.Client, prompt: str) -> Iterator[Iterator[str]]:
    """Yield the lines of a stream as they come; leaves at the end."""
    body = {"prompt": prompt}
    with client.stream("POST", "/v1/generate", json=body, headers=EVENTS) as answer:
        yield answer.iter_lines()


def test_the_native_stream_tells_of_queue_steps_previews_and_the_answer(client: httpx.Client) -> None:
    answer = ask(client, previews=2)
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-store"
    *before, (name, done) = events(answer)
    preview = {"image": 0, "b64_json": SHOWN, "content_type": "image/png"}
    assert before == [
        ("queued", {"image": 0, "position": 0, "predicted_s": 0.5}),
        ("step", {"image": 0, "step": 1, "steps": 4}),
        ("preview", preview | {"index": 0, "step": 1}),
        ("preview", preview | {"index": 1, "step": 3}),
    ]
    plain = client.post("/v1/generate", json={"prompt": "a", "seed": 1}).json()
    assert (name, done | {"id": ""}) == ("done", plain | {"id": ""})


def test_several_pictures_are_told_apart_by_their_numbers(client: httpx.Client) -> None:
    found = events(ask(client, num_images=3, previews=1))
    for kind in ("queued", "step", "preview"):
        assert [data["image"] for name, data in found if name == kind] == [0, 1, 2]
    assert len(found[-1][1]["images"]) == 3


def test_events_arrive_while_the_work_goes_on(client: httpx.Client, engine: FakeEngine) -> None:
    with reading(client, "wait") as lines:
        assert next(lines) == "event: queued"


def test_a_client_that_leaves_takes_its_work_along() -> None:
    engine = FakeEngine()
    with serving(engine) as url, httpx.Client(base_url=url, timeout=20) as client:
        with reading(client, "wait") as lines:
            assert next(lines) == "event: queued"
            assert not engine.cancelled
        wait_until(lambda: len(engine.cancelled) == 1)
        wait_until(lambda: 'outcome="client_gone",route="/v1/generate"' in client.get("/metrics").text)


@pytest.mark.parametrize(("prompt", "status"), [("overloaded", 429), ("not_ready", 503), ("fault", 500)])
def test_what_fails_before_the_first_event_keeps_its_status(
    client: httpx.Client, prompt: str, status: int
) -> None:
    answer = ask(client, prompt=prompt)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("prompt", "code"),
    [("then generation_failed", "generation_failed"), ("then fault", "internal_error")],
)
def test_what_fails_later_is_the_last_event(client: httpx.Client, prompt: str, code: str) -> None:
    answer = ask(client, prompt=prompt)
    assert answer.status_code == 200
    name, data = events(answer)[-1]
    assert (name, data["error"]["code"]) == ("error", code)
    assert data["error"]["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
    outcome = f'flux_requests_total{{outcome="{code}",route="/v1/generate"}}'
    wait_until(lambda: outcome in client.get("/metrics").text)  # counted when all is sent


def test_a_retry_with_the_same_key_gets_the_same_end(client: httpx.Client, engine: FakeEngine) -> None:
    before = len(engine.requests)
    body = {"prompt": "a", "previews": 1}
    headers = EVENTS | {"Idempotency-Key": "stream-1"}
    first, again = (events(client.post("/v1/generate", json=body, headers=headers)) for _ in range(2))
    assert again == first[-1:]
    assert len(engine.requests) == before + 1


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("text/event-stream, application/json", "text/event-stream; charset=utf-8"),
        ("text/event-stream;q=0.5, application/json", "application/json"),
        ("text/event-stream;q=0.5, image/png", "image/png"),
        ("text/html, text/event-stream", "text/event-stream; charset=utf-8"),
    ],
)
def test_events_are_sent_to_those_who_prefer_them(client: httpx.Client, accept: str, kind: str) -> None:
    answer = client.post("/v1/generate", json={"prompt": "a"}, headers={"Accept": accept})
    assert answer.headers["content-type"] == kind


def test_previews_need_a_stream(client: httpx.Client) -> None:
    for answer in (
        client.post("/v1/generate", json={"prompt": "a", "previews": 1}),
        client.get("/v1/generate", params={"prompt": "a", "previews": 1}),
    ):
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert (error["param"], "text/event-stream" in error["message"]) == ("previews", True)


def test_a_silent_stream_is_kept_alive() -> None:
    go_on = asyncio.Event()

    async def generate(watch: Watch) -> GenerationResult:
        watch.listen(0, Forecast(position=0, finish_s=1.0))
        await go_on.wait()
        (image,) = PLAIN.images()
        return GenerationResult(
            id="r",
            model="m",
            steps=4,
            run_steps=4,
            images=[picture(image)],
            timings=picture(image).timings,
            created=0,
        )

    async def story() -> list[bytes]:
        told = Story(NativeScript(PLAIN), Exchange("r", max_body_bytes=0))
        await told.begin(generate)
        return [
            chunk
            async for chunk in released_after_comments(kept_alive(told.written(), quiet_s=0.01), comments=2)
        ]

    async def released_after_comments(chunks: AsyncIterator[bytes], *, comments: int) -> AsyncIterator[bytes]:
        seen = 0
        async for chunk in chunks:
            seen += chunk == KEEPALIVE_COMMENT
            if seen == comments:
                go_on.set()
            yield chunk

    chunks = asyncio.run(asyncio.wait_for(story(), 10))
    assert chunks.count(KEEPALIVE_COMMENT) >= 2
    assert b"event: done\ndata: " in chunks


@pytest.fixture
def api(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def test_the_openai_stream_has_what_its_clients_read(api: openai.OpenAI) -> None:
    asked: Any = {"prompt": "a", "size": "512x256", "output_format": "jpeg", "extra_body": {"seed": 7}}
    partial, completed = api.images.generate(**asked, stream=True, partial_images=1)
    assert partial.type == "image_generation.partial_image"
    assert (partial.b64_json, partial.partial_image_index) == (SHOWN, 0)
    assert completed.type == "image_generation.completed"
    assert base64.b64decode(completed.b64_json).startswith(b"\xff\xd8")
    for event in (partial, completed):
        assert (event.size, event.output_format, event.background) == ("512x256", "jpeg", "opaque")
        assert event.created_at > 1_700_000_000


def test_each_of_several_pictures_completes_with_its_seed(api: openai.OpenAI) -> None:
    found = list(api.images.generate(prompt="a", n=3, stream=True, partial_images=2, extra_body={"seed": 40}))
    completed: list[Any] = [event for event in found if event.type == "image_generation.completed"]
    assert [event.seed for event in completed] == [40, 41, 42]
    assert len(found) == 9


def test_an_openai_stream_without_previews_is_one_event(api: openai.OpenAI, engine: FakeEngine) -> None:
    (completed,) = api.images.generate(prompt="a", stream=True)
    assert completed.type == "image_generation.completed"
    assert engine.last().previews == 0
    api.images.generate(prompt="a", partial_images=2)
    assert engine.last().previews == 0, "there is no stream to show them in"


def test_an_error_in_an_openai_stream_is_raised(api: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError) as caught:
        list(api.images.generate(prompt="then generation_failed", stream=True))
    assert caught.value.message == "the picture holds NaN"
    with pytest.raises(openai.RateLimitError):
        api.images.generate(prompt="overloaded", stream=True)
