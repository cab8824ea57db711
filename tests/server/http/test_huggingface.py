"""The Hugging Face dialect through its official client: bytes in, bytes out, and no endless retries."""

import io
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from tests.server.decoder.pictures import file_of, gradient
from tests.server.http.fake_engine import FakeEngine, serving
from tests.server.models import MODEL


@pytest.fixture
def api(url: str) -> InferenceClient:
    return InferenceClient(model=f"{url}/hf", token="hf_unused")


def test_the_official_client_gets_a_picture(api: InferenceClient, engine: FakeEngine) -> None:
    image = api.text_to_image(
        "a cat",
        negative_prompt="bad",
        height=512,
        width=768,
        num_inference_steps=4,
        guidance_scale=0.0,
        scheduler="Euler",
        seed=42,
        extra_body={"lora": "x"},
    )
    assert (image.size, image.format) == ((768, 512), "PNG")
    asked = engine.last()
    assert (asked.prompt, asked.negative_prompt, asked.steps, asked.seed) == ("a cat", "bad", 4, 42)
    assert asked.guidance_scale == 0


def test_the_address_may_end_with_a_slash(url: str) -> None:
    """The client posts to it as it is."""
    assert InferenceClient(model=f"{url}/hf/").text_to_image("a").size == (256, 256)


def test_what_is_left_out_takes_the_model_s_defaults(api: InferenceClient, engine: FakeEngine) -> None:
    assert api.text_to_image("a").size == (256, 256)
    assert (engine.last().steps, engine.last().max_sequence_length) == (4, 256)
    assert api.text_to_image("a", num_inference_steps=50).size == (256, 256)
    assert engine.last().steps == MODEL.max_steps


@pytest.mark.parametrize(
    ("accept", "asked", "kind"),
    [
        ("image/png", None, "png"),
        ("image/jpeg", None, "jpeg"),
        ("image/webp;q=0.9, image/png;q=0.5", None, "webp"),
        ("*/*", None, "png"),
        ("application/json", None, "png"),
        ("image/png", "webp", "webp"),
        ("image/png", "jpg", "jpeg"),
    ],
)
def test_the_kind_of_file_is_the_one_asked_for(
    client: httpx.Client, accept: str, asked: str | None, kind: str
) -> None:
    sent = {"inputs": "a", "parameters": {"seed": 3, "output_format": asked}}
    answer = client.post("/hf", json=sent, headers={"Accept": accept})
    assert (answer.headers["content-type"], answer.headers["x-seed"]) == (f"image/{kind}", "3")
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format or "").lower() == kind


@pytest.mark.parametrize("parameters", [None, {}])
def test_parameters_may_be_absent(client: httpx.Client, parameters: dict[str, Any] | None) -> None:
    assert client.post("/hf", json={"inputs": "a"}).status_code == 200
    assert client.post("/hf", json={"inputs": "a", "parameters": parameters}).status_code == 200


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({}, "inputs is missing; it is text of at most 32000 characters"),
        ({"inputs": 5}, "inputs is 5; allowed: text"),
        ({"inputs": "a", "parameters": 5}, "parameters is 5; allowed: an object"),
        ({"inputs": "a", "parameters": {"width": 250}}, "parameters.width is 250; allowed: a multiple of 16"),
        ({"inputs": "a", "parameters": {"height": "256"}}, 'parameters.height is "256"; allowed: a multiple'),
        (
            {"inputs": "a", "parameters": {"seed": -1}},
            "parameters.seed is -1; allowed: a whole number from 0",
        ),
        ({"inputs": "a", "parameters": {"num_inference_steps": 0}}, "parameters.num_inference_steps is 0; "),
        ({"inputs": "a", "parameters": {"output_format": "gif"}}, 'parameters.output_format is "gif"; '),
    ],
    ids=str,
)
def test_wrong_values_are_named(client: httpx.Client, sent: dict[str, Any], message: str) -> None:
    answer = client.post("/hf", json=sent)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(message)
    assert "another value" not in answer.text


def test_the_reason_is_in_the_client_s_exception(api: InferenceClient) -> None:
    with pytest.raises(HfHubHTTPError, match="width is 100"):
        api.text_to_image("a", width=100)


def test_a_model_in_the_address_may_be_any_unless_names_are_checked(client: httpx.Client) -> None:
    path, sent = "/hf/models/stabilityai/sdxl-turbo", {"inputs": "a"}
    assert client.post(path, json=sent).status_code == 200
    with serving(FakeEngine(), strict_models=True) as url:
        refused = httpx.post(f"{url}{path}", json=sent)
        assert refused.status_code == 404
        assert refused.json()["error"].startswith('model is "stabilityai/sdxl-turbo"; allowed: flux-schnell')
        for known in ("/hf", "/hf/models/black-forest-labs/FLUX.1-schnell", "/hf/models/fake"):
            assert httpx.post(f"{url}{known}", json=sent).status_code == 200


def test_the_official_client_starts_from_a_picture(api: InferenceClient, engine: FakeEngine) -> None:
    sent = file_of(gradient())
    image = api.image_to_image(sent, prompt="a cat", num_inference_steps=4, strength=0.5, seed=3)
    assert image.size == gradient().size
    asked = engine.last()
    assert (asked.prompt, asked.seed) == ("a cat", 3)
    assert asked.source is not None
    assert (asked.source.pixels, asked.source.strength) == (gradient().tobytes(), 0.5)
    api.image_to_image(sent, prompt="a cat", target_size={"width": 256, "height": 512})  # type: ignore[arg-type]
    assert (engine.last().width, engine.last().height) == (256, 512)


def test_a_picture_without_a_word_is_a_picture(api: InferenceClient, engine: FakeEngine) -> None:
    for parameters in ({}, {"seed": 3}):  # the file itself, and base64
        api.image_to_image(file_of(gradient(), "JPEG"), **parameters)
        assert engine.last().prompt == ""
        assert engine.last().source is not None


def test_what_is_no_picture_is_refused_in_the_dialect_s_shape(api: InferenceClient) -> None:
    with pytest.raises(HfHubHTTPError, match="inputs is a file of another kind"):
        api.image_to_image(b"GIF89a", prompt="a")
    with pytest.raises(HfHubHTTPError, match=r"parameters\.strength is 2; allowed: a number from"):
        api.image_to_image(file_of(gradient()), prompt="a", strength=2)
