"""`/v1/generate`: what a client writes is what the engine is asked, and what comes back is well marked."""

import base64
import io
import itertools
from typing import Any

import httpx
import msgspec
import pytest
from PIL import Image

from server.generation import GenerationRequest, Priority
from tests.server.http.fake_engine import FORECAST, FakeEngine, serving, wait_until
from tests.server.models import MODEL

PLAIN = GenerationRequest(id="", prompt="a", width=256, height=256, steps=4, seed=1, max_sequence_length=256)
EVERYTHING = {
    "prompt": "a\tcat\n",
    "negative_prompt": "a dog",
    "width": 512,
    "height": 272,
    "num_inference_steps": 7,
    "guidance_scale": 3.5,
    "seed": 9,
    "num_images": 3,
    "max_sequence_length": 77,
    "output_format": "webp",
    "output_quality": 55,
    "embed_prompt": True,
    "priority": "low",
    "deadline_ms": 60_000,
}


def test_every_field_reaches_the_engine(client: httpx.Client, engine: FakeEngine) -> None:
    assert client.post("/v1/generate", json=EVERYTHING).status_code == 200
    assert engine.last() == GenerationRequest(
        id="",
        prompt="a\tcat\n",
        negative_prompt="a dog",
        width=512,
        height=272,
        steps=7,
        guidance_scale=3.5,
        seed=9,
        num_images=3,
        max_sequence_length=77,
        image_format="webp",
        quality=55,
        embed_prompt=True,
        priority=Priority.LOW,
        deadline_s=60.0,
    )


def test_what_is_left_out_is_the_models_choice(client: httpx.Client, engine: FakeEngine) -> None:
    assert client.post("/v1/generate", json={"prompt": "a", "seed": 1}).status_code == 200
    assert engine.last() == PLAIN


def test_null_is_as_good_as_left_out(client: httpx.Client, engine: FakeEngine) -> None:
    nothing = dict.fromkeys(
        ("width", "height", "num_inference_steps", "guidance_scale", "max_sequence_length", "deadline_ms")
    )
    body = {"prompt": "a", "seed": 1, "output_format": None, "image": None, "strength": None, **nothing}
    assert client.post("/v1/generate", json=body).status_code == 200
    assert engine.last() == PLAIN


def test_the_query_says_the_same_as_the_body(client: httpx.Client, engine: FakeEngine) -> None:
    fields = {name: value for name, value in EVERYTHING.items() if name != "num_images"}
    assert client.post("/v1/generate", json=fields).status_code == 200
    by_body = engine.last()
    query = {name: str(value) for name, value in fields.items()}
    assert client.get("/v1/generate", params=query).status_code == 200
    assert engine.last() == by_body


def test_an_empty_prompt_and_the_bounds_are_allowed(client: httpx.Client, engine: FakeEngine) -> None:
    for body in (
        {"prompt": ""},
        {"prompt": "\U0001f409" * 32_000},
        {"prompt": "a", "width": 1536, "height": 256, "num_inference_steps": 12, "guidance_scale": 20},
        {"prompt": "a", "seed": 2**53 - 1, "max_sequence_length": 512, "output_quality": 100},
        {"prompt": "a", "seed": 2**53 - 8, "num_images": 8, "max_sequence_length": 16, "deadline_ms": 1},
    ):
        assert client.post("/v1/generate", json=body).status_code == 200
        assert engine.last().prompt == body["prompt"]


def test_drawn_seeds_are_small_and_differ(client: httpx.Client, engine: FakeEngine) -> None:
    seeds = set()
    for _ in range(5):
        client.post("/v1/generate", json={"prompt": "a"})
        seeds.add(engine.last().seed)
    assert len(seeds) == 5
    assert max(seeds) < 2**32


def test_steps_that_nobody_named_stay_within_the_limit() -> None:
    low = FakeEngine(model_info=msgspec.structs.replace(MODEL, max_steps=2), auto_steps=4)
    with serving(low) as url:
        for steps in (None, "auto"):
            httpx.post(f"{url}/v1/generate", json={"prompt": "a", "num_inference_steps": steps})
            assert low.last().steps == 2
        refused = httpx.post(f"{url}/v1/generate", json={"prompt": "a", "num_inference_steps": 3})
        assert refused.status_code == 422
        assert "from 1 to 2" in refused.json()["error"]["message"]


@pytest.mark.parametrize("field", ["image", "mask_image", "strength", "outpaint", "preserve"])
def test_an_address_says_nothing_of_pictures(client: httpx.Client, field: str) -> None:
    answer = client.get("/v1/generate", params={"prompt": "a", field: "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, field)
    assert "not a field of this request" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("accept", "asked", "kind"),
    [
        (None, None, "application/json"),
        ("*/*", None, "application/json"),
        ("application/json", None, "application/json"),
        ("image/*", None, "image/png"),
        ("image/webp", None, "image/webp"),
        ("IMAGE/JPEG", None, "image/jpeg"),
        ("image/*", "webp", "image/webp"),
        ("image/png", "jpeg", "image/jpeg"),
        ("application/json, image/png", None, "application/json"),
        ("application/json;q=0.1, image/webp;q=0.2", None, "image/webp"),
        ("image/webp;q=0.5, image/jpeg", None, "image/jpeg"),
        ("image/png;q=0, */*", None, "application/json"),
        ("image/avif, image/webp, */*;q=0.8", None, "image/webp"),
        ("image/avif", None, "application/json"),
        ("image/png;q=nonsense", None, "application/json"),
        (";;,,;q=", None, "application/json"),
    ],
)
def test_accept_decides_what_is_answered(
    client: httpx.Client, accept: str | None, asked: str | None, kind: str
) -> None:
    headers = {} if accept is None else {"Accept": accept}
    answer = client.post("/v1/generate", json={"prompt": "a", "output_format": asked}, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == kind
    if kind.startswith("image/"):
        with Image.open(io.BytesIO(answer.content)) as image:
            assert image.format == kind.removeprefix("image/").upper()


def test_a_get_is_always_a_picture(client: httpx.Client) -> None:
    for accept, kind in (
        ("text/html,application/xhtml+xml,*/*;q=0.8", "image/png"),
        ("image/avif,image/webp,image/apng,*/*;q=0.8", "image/webp"),
        ("application/json", "image/png"),
    ):
        answer = client.get("/v1/generate?prompt=a", headers={"Accept": accept})
        assert answer.headers["content-type"] == kind


def test_pictures_come_with_their_seeds(client: httpx.Client) -> None:
    body = {"prompt": "a", "seed": 300, "num_images": 8, "width": 320}
    answer = client.post("/v1/generate", json=body)
    assert int(answer.headers["content-length"]) == len(answer.content)
    images = answer.json()["images"]
    assert [image["seed"] for image in images] == list(range(300, 308))
    for image in images:
        with Image.open(io.BytesIO(base64.b64decode(image["b64_json"], validate=True))) as decoded:
            assert decoded.size == (image["width"], image["height"]) == (320, 256)
            assert decoded.getpixel((0, 0)) == (image["seed"] - 256, 1, 4)
    raw = client.post("/v1/generate", json={"prompt": "a", "seed": 7}, headers={"Accept": "image/*"})
    assert raw.headers["x-seed"] == "7"


def test_an_answer_says_what_was_predicted_of_it(client: httpx.Client) -> None:
    timings = client.post("/v1/generate", json={"prompt": "a"}).json()["timings"]
    assert (timings["queue_position"], timings["predicted_s"]) == (FORECAST.position, FORECAST.finish_s)
    assert (timings["queue_s"], timings["total_s"]) == (0.001, 0.015)


def test_several_pictures_cannot_be_one_file(client: httpx.Client, engine: FakeEngine) -> None:
    before = len(engine.requests)
    body = {"prompt": "a", "num_images": 2}
    for answer in (
        client.post("/v1/generate", json=body, headers={"Accept": "image/png"}),
        client.get("/v1/generate", params=body),
    ):
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, "num_images")
    assert len(engine.requests) == before


def tag(client: httpx.Client, **query: Any) -> str:
    answer = client.get("/v1/generate", params={"prompt": "a", "seed": 1} | query)
    assert answer.headers["cache-control"].startswith("public")
    return answer.headers["etag"]


def test_a_tag_tells_everything_that_decides_the_file(client: httpx.Client) -> None:
    tags = [
        tag(client, **query)
        for query in (
            {},
            {"prompt": "b"},
            {"seed": 2},
            {"width": 272},
            {"height": 272},
            {"num_inference_steps": 3},
            {"guidance_scale": 2},
            {"guidance_scale": 2, "negative_prompt": "b"},
            {"max_sequence_length": 128},
            {"output_format": "jpeg"},
            {"output_format": "jpeg", "output_quality": 50},
            {"embed_prompt": "true"},
        )
    ]
    assert all(one != other for one, other in itertools.combinations(tags, 2))
    assert tag(client, priority="low") == tag(client, deadline_ms=9000) == tag(client, width=256) == tags[0]


def test_a_tag_tells_nothing_that_has_no_say_in_the_file(client: httpx.Client) -> None:
    for query in ({"negative_prompt": "b"}, {"output_quality": 50}, {"guidance_scale": 1}):
        assert tag(client, **query) == tag(client)


def test_another_model_has_other_tags(client: httpx.Client) -> None:
    other = FakeEngine(model_info=msgspec.structs.replace(MODEL, digest="d2" * 32))
    with serving(other) as url, httpx.Client(base_url=url) as its_client:
        assert tag(its_client) != tag(client)


@pytest.mark.parametrize("sent", ["{}", "W/{}", '"x", {}', "*"])
def test_a_known_picture_is_not_made_again(client: httpx.Client, engine: FakeEngine, sent: str) -> None:
    url = "/v1/generate?prompt=a&seed=1"
    known = client.get(url).headers["etag"]
    before = len(engine.requests)
    answer = client.get(url, headers={"If-None-Match": sent.format(known)})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", known)
    assert answer.headers["vary"] == "Accept"
    assert len(engine.requests) == before


@pytest.mark.parametrize("query", ["prompt=a", "prompt=a&seed=1&num_inference_steps=auto"])
def test_a_picture_that_may_differ_next_time_is_not_kept(client: httpx.Client, query: str) -> None:
    answer = client.get(f"/v1/generate?{query}", headers={"If-None-Match": "*"})
    assert answer.status_code == 200
    assert "etag" not in answer.headers
    assert answer.headers["cache-control"] == "no-store"


def test_a_parameter_given_twice_is_refused(client: httpx.Client) -> None:
    answer = client.get("/v1/generate?prompt=a&width=256&width=512")
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "width is given 2 times; allowed: once"


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/generate"), ("GET", "/v1/generate"), ("POST", "/v1/images/generations")],
)
def test_a_client_that_leaves_cancels_its_work(
    client: httpx.Client, engine: FakeEngine, method: str, path: str
) -> None:
    before = len(engine.cancelled)
    what = {"params": {"prompt": "wait"}} if method == "GET" else {"json": {"prompt": "wait"}}
    with pytest.raises(httpx.ReadTimeout):
        client.request(method, path, timeout=0.2, **what)
    wait_until(lambda: len(engine.cancelled) == before + 1)
    assert 'outcome="client_gone"' in client.get("/metrics").text
