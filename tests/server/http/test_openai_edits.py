"""`/v1/images/edits`: what OpenAI's client uploads is where the model starts."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from server.generation import Source
from tests.server.decoder.pictures import file_of, gradient
from tests.server.http.fake_engine import FakeEngine

SIZE = (320, 256)


@pytest.fixture
def api(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def upload(image: Image.Image, name: str = "a.png") -> tuple[str, bytes, str]:
    return name, file_of(image), "image/png"


def with_hole(image: Image.Image) -> Image.Image:
    clear = image.convert("RGBA")
    clear.paste((0, 0, 0, 0), (64, 64, 128, 128))
    return clear


def hole() -> bytes:
    mask = Image.new("L", SIZE)
    mask.paste(255, (64, 64, 128, 128))
    return mask.tobytes()


def source(engine: FakeEngine) -> Source:
    found = engine.last().source
    assert found is not None
    return found


def test_a_picture_is_edited_in_its_own_size(api: openai.OpenAI, engine: FakeEngine) -> None:
    answer = api.images.edit(
        image=upload(gradient(*SIZE)), prompt="a", n=2, extra_body={"seed": 5, "steps": 4, "strength": 0.3}
    )
    assert len(answer.data or []) == 2
    assert source(engine) == Source(pixels=gradient(*SIZE).tobytes(), strength=0.3)
    asked = engine.last()
    assert (asked.width, asked.height, asked.seed, asked.num_images, asked.steps) == (*SIZE, 5, 2, 4)
    api.images.edit(image=upload(gradient(*SIZE)), prompt="a")
    assert source(engine).strength == 0.6


@pytest.mark.parametrize("model", ["gpt-image-1", "dall-e-2"])
def test_what_is_transparent_in_the_mask_is_drawn_anew(
    api: openai.OpenAI, engine: FakeEngine, model: str
) -> None:
    mask = upload(with_hole(Image.new("RGB", SIZE)))
    api.images.edit(image=upload(gradient(*SIZE)), mask=mask, prompt="a", model=model)
    assert source(engine) == Source(pixels=gradient(*SIZE).tobytes(), strength=1.0, mask=hole(), blend=hole())


def test_a_picture_with_a_hole_is_its_own_mask(api: openai.OpenAI, engine: FakeEngine) -> None:
    api.images.edit(image=upload(with_hole(gradient(*SIZE))), prompt="a")
    assert (source(engine).mask, source(engine).strength) == (hole(), 1.0)


def test_a_size_is_covered_and_the_rest_cut_off(api: openai.OpenAI, engine: FakeEngine) -> None:
    wide = Image.new("RGB", (512, 256), "red")
    wide.paste("blue", (128, 0, 384, 256))
    api.images.edit(image=upload(wide), prompt="a", size="256x256")
    assert source(engine).pixels == Image.new("RGB", (256, 256), "blue").tobytes()


def test_one_picture_in_a_list_is_one(api: openai.OpenAI, engine: FakeEngine) -> None:
    api.images.edit(image=[upload(gradient())], prompt="a")
    assert source(engine).pixels == gradient().tobytes()
    with pytest.raises(openai.BadRequestError, match="image is given 2 times; allowed: once") as caught:
        api.images.edit(image=[upload(gradient()), upload(gradient(), "b.png")], prompt="a")
    assert caught.value.param == "image"


def test_edits_are_streamed_under_their_own_name(api: openai.OpenAI) -> None:
    stream = api.images.edit(
        image=upload(gradient()), prompt="a", stream=True, partial_images=2, extra_body={"strength": 1}
    )
    kinds = [event.type for event in stream]
    assert kinds == ["image_edit.partial_image", "image_edit.partial_image", "image_edit.completed"]


def test_json_says_the_same(client: httpx.Client, engine: FakeEngine) -> None:
    api = client.get("/openapi.json").json()["paths"]["/v1/images/edits"]["post"]
    example = api["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/v1/images/edits", json=example).status_code == 200
    assert (engine.last().width, engine.last().height) == (256, 256)
    text = json.dumps(client.post("/v1/images/edits", json={"prompt": "a", "image": "x"}).json())
    assert 'image is \\"x\\"' in text


@pytest.mark.parametrize(
    ("arguments", "param", "message"),
    [
        ({"image": ("a.gif", b"GIF89a")}, "image", "image is a file of another kind; allowed: a PNG, JPEG"),
        ({"mask": upload(Image.new("L", SIZE))}, "mask", "mask is a picture without transparency"),
        ({"mask": ("m.png", b"x")}, "mask", "mask is a file of another kind"),
        ({"size": "100x100"}, "size", "size is"),
        ({"n": 11}, "n", 'n is "11"'),
        ({"extra_body": {"strength": 0}}, "strength", 'strength is "0"; allowed: a number from 0.01 to 1'),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_wrong_values_are_bad_requests(
    api: openai.OpenAI, arguments: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        api.images.edit(**{"image": upload(gradient()), "prompt": "a"} | arguments)
    assert caught.value.param == param
    assert message in caught.value.message


def test_a_picture_is_missing(client: httpx.Client) -> None:
    answer = client.post("/v1/images/edits", files={"prompt": (None, "a")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "image")
