"""The OpenAI dialect through the official client: what it asks, what it gets, and which class of error."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.server.http.fake_engine import FakeEngine, serving


@pytest.fixture
def api(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def seeds(answer: Any) -> list[int]:
    return [datum.seed for datum in answer.data]


def test_what_interfaces_send_is_accepted(api: openai.OpenAI, engine: FakeEngine) -> None:
    answer = api.images.generate(
        model="gpt-image-1",
        prompt="a cat",
        n=1,
        size="auto",
        quality="hd",
        style="vivid",
        moderation="low",
        user="somebody",
        background="auto",
        response_format="b64_json",
        extra_body={"lora": "x", "vae_use_tiling": True, "partial_images": 0, "stream": False},
    )
    asked = engine.last()
    assert (asked.width, asked.height, asked.steps, asked.num_images) == (256, 256, 4, 1)
    assert (asked.image_format, asked.quality, asked.guidance_scale) == ("png", 100, 0.0)
    assert (answer.size, answer.output_format, answer.background) == ("256x256", "png", "opaque")
    (datum,) = answer.data or []
    with Image.open(io.BytesIO(base64.b64decode(datum.b64_json or "", validate=True))) as image:
        assert (image.format, image.size) == ("PNG", (256, 256))
    assert answer.created > 1_700_000_000


@pytest.mark.parametrize(
    ("extra", "field", "value"),
    [
        ({"num_inference_steps": 2}, "steps", 2),
        ({"steps": 2}, "steps", 2),
        ({"step": 2}, "steps", 2),
        ({"steps": 50}, "steps", 12),
        ({"seed": 7}, "seed", 7),
        ({"negative_prompt": "dog"}, "negative_prompt", "dog"),
        ({"width": 512}, "width", 512),
        ({"height": 272}, "height", 272),
        ({"max_sequence_length": 64}, "max_sequence_length", 64),
        ({"true_cfg_scale": 4}, "guidance_scale", 4.0),
        ({"guidance_scale": 3.5}, "guidance_scale", 0.0),
        ({"guidance_scale": 500}, "guidance_scale", 0.0),
    ],
    ids=str,
)
def test_extra_fields_reach_the_engine(
    api: openai.OpenAI, engine: FakeEngine, extra: dict[str, Any], field: str, value: object
) -> None:
    api.images.generate(prompt="a", size="1024x768", extra_body=extra)
    assert getattr(engine.last(), field) == value


@pytest.mark.parametrize("n", [1, 2, 9, 10])
def test_up_to_ten_pictures_with_seeds_that_follow(api: openai.OpenAI, n: int) -> None:
    answer = api.images.generate(prompt="a", n=n, extra_body={"seed": 40})
    assert seeds(answer) == list(range(40, 40 + n))
    assert len({datum.b64_json for datum in answer.data or []}) == n


@pytest.mark.parametrize(
    ("model", "asked", "field"),
    [
        ("dall-e-3", None, "url"),
        ("dall-e-2", "b64_json", "b64_json"),
        ("gpt-image-1", None, "b64_json"),
        ("flux-schnell", "url", "url"),
    ],
)
def test_who_asks_for_an_old_model_reads_addresses(
    api: openai.OpenAI, model: str, asked: Any, field: str
) -> None:
    (datum,) = api.images.generate(prompt="a", model=model, response_format=asked).data or []
    assert [name for name in ("url", "b64_json") if getattr(datum, name)] == [field]


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_addresses_carry_the_picture(api: openai.OpenAI, engine: FakeEngine, kind: Any) -> None:
    answer = api.images.generate(
        prompt="a", response_format="url", output_format=kind, output_compression=0, n=2
    )
    assert (engine.last().image_format, engine.last().quality) == (kind, 1)
    for datum in answer.data or []:
        assert datum.b64_json is None
        head, _, text = (datum.url or "").partition(",")
        assert head == f"data:image/{kind};base64"
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            assert image.format == kind.upper()


def test_models_with_and_without_a_slash(api: openai.OpenAI, client: httpx.Client) -> None:
    ids = [model.id for model in api.models.list()]
    assert ids == ["flux-schnell", "black-forest-labs/FLUX.1-schnell", "fake"]
    for name in ids:
        model = api.models.retrieve(name)
        assert (model.id, model.object, model.owned_by) == (name, "model", "black-forest-labs")
    assert client.get("/v1/models/black-forest-labs/FLUX.1-schnell").json()["id"] == ids[1]
    with pytest.raises(openai.NotFoundError) as caught:
        api.models.retrieve("gpt-9\n\x1b[31m")
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": "a\0"}, "prompt"),
        ({"prompt": "a" * 32_001}, "prompt"),
        ({"n": 11}, "n"),
        ({"n": "2"}, "n"),
        ({"size": "256"}, "size"),
        ({"size": "256x256x256"}, "size"),
        ({"size": "\u0662\u0665\u0666x256"}, "size"),
        ({"extra_body": {"width": 0}}, "width"),
        ({"size": "0256x0256"}, "size"),
        ({"size": "250x256"}, "size"),
        ({"size": "99999x99999"}, "size"),
        ({"response_format": "file"}, "response_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"background": "transparent"}, "background"),
        ({"partial_images": 4}, "partial_images"),
        ({"extra_body": {"steps": "four"}}, "steps"),
        ({"extra_body": {"step": 0}}, "step"),
        ({"extra_body": {"true_cfg_scale": 21}}, "true_cfg_scale"),
        ({"extra_body": {"height": 0}}, "height"),
        ({"extra_body": {"seed": 2**53}}, "seed"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_wrong_values_are_bad_requests(
    api: openai.OpenAI, engine: FakeEngine, arguments: dict[str, Any], param: str
) -> None:
    before = len(engine.requests)
    with pytest.raises(openai.BadRequestError) as caught:
        api.images.generate(**{"prompt": "a"} | arguments)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert f"{param} is " in caught.value.message
    assert "another value" not in caught.value.message
    assert len(engine.requests) == before


@pytest.mark.parametrize(
    ("prompt", "kind", "status", "tries"),
    [
        ("overloaded", openai.RateLimitError, 429, 1),
        ("not_ready", openai.InternalServerError, 503, 2),
        ("worker_lost", openai.InternalServerError, 503, 2),
        ("generation_failed", openai.InternalServerError, 500, 1),
        ("deadline_exceeded", openai.InternalServerError, 504, 1),
        ("fault", openai.InternalServerError, 500, 1),
    ],
)
def test_clients_repeat_what_may_succeed_and_nothing_else(
    prompt: str, kind: type[openai.APIStatusError], status: int, tries: int
) -> None:
    engine = FakeEngine()
    patience = 0 if prompt == "overloaded" else 1  # the 8 seconds that it is told to wait are not for a test
    with (
        serving(engine) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=patience) as api,
        pytest.raises(kind) as caught,
    ):
        api.images.generate(prompt=prompt)
    assert caught.value.status_code == status
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]
    assert len(engine.requests) == tries
