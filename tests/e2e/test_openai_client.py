"""The official OpenAI client, unchanged, against the real server."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from PIL import Image

from tests.e2e.conftest import Server, running_server
from tests.server.decoder.pictures import file_of, gradient


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def image(datum: object) -> Image.Image:
    data = base64.b64decode(datum.b64_json)  # type: ignore[attr-defined]
    return Image.open(io.BytesIO(data))


def test_generate(client: openai.OpenAI) -> None:
    answer = client.images.generate(model="flux-schnell", prompt="a cat")
    (datum,) = answer.data or []
    assert image(datum).size == (256, 256)
    assert image(datum).format == "PNG"


@pytest.mark.parametrize("n", [2, 10])
def test_generate_several(client: openai.OpenAI, n: int) -> None:
    answer = client.images.generate(prompt="a cat", n=n, size="256x272", extra_body={"steps": 1})
    pictures = {datum.b64_json for datum in answer.data or []}
    assert len(pictures) == n
    assert image((answer.data or [])[0]).size == (256, 272)


def test_extra_fields_reach_the_model(client: openai.OpenAI) -> None:
    def picture(**extra: object) -> str | None:
        body = {"seed": 1, "num_inference_steps": 2, **extra}
        return (client.images.generate(prompt="a cat", extra_body=body).data or [])[0].b64_json

    assert picture() == picture()
    assert picture() != picture(seed=2)
    assert picture() != picture(num_inference_steps=1)
    assert picture() != picture(true_cfg_scale=4.0, negative_prompt="blue")
    assert picture(steps_are="ignored", negative_prompt=None) == picture()
    assert picture(num_inference_steps=50) == picture(num_inference_steps=12)


def test_formats_and_addresses(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a", output_format="webp", output_compression=50, quality="high")
    assert image((answer.data or [])[0]).format == "WEBP"
    answer = client.images.generate(prompt="a", response_format="url", style="vivid", size="auto")
    address = (answer.data or [])[0].url or ""
    assert address.startswith("data:image/png;base64,")


def test_a_picture_is_edited_and_what_a_mask_keeps_is_kept(client: openai.OpenAI) -> None:
    sent = gradient(256, 272)
    mask = Image.new("RGBA", sent.size, "black")
    mask.paste((0, 0, 0, 0), (0, 0, 128, 272))
    files = {"image": ("a.png", file_of(sent)), "mask": ("m.png", file_of(mask))}
    answer = client.images.edit(prompt="a red circle", extra_body={"steps": 2, "seed": 1}, **files)
    (datum,) = answer.data or []
    edited = image(datum)
    kept = (128, 0, 256, 272)
    assert edited.size == sent.size
    assert edited.crop(kept).tobytes() == sent.crop(kept).tobytes()
    assert edited.tobytes() != sent.tobytes()


def test_models_are_listed_and_found_with_a_slash_in_the_id(client: openai.OpenAI) -> None:
    ids = [model.id for model in client.models.list()]
    assert ids[:2] == ["flux-schnell", "black-forest-labs/FLUX.1-schnell"]
    for name in ids:
        assert client.models.retrieve(name).id == name


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.param == "model"


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"size": "100x100"}, "size"),
        ({"size": "huge"}, "size"),
        ({"n": 11}, "n"),
        ({"n": 0}, "n"),
        ({"output_format": "gif"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"stream": True, "partial_images": 4}, "partial_images"),
        ({"extra_body": {"seed": -1}}, "seed"),
        ({"extra_body": {"width": 100}}, "width"),
        ({"extra_body": {"num_inference_steps": "four"}}, "num_inference_steps"),
    ],
    ids=str,
)
def test_bad_requests_name_the_parameter(
    client: openai.OpenAI, arguments: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": "a cat", **arguments})  # type: ignore[call-overload]
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert param in caught.value.message


def test_a_server_that_is_loading_is_an_internal_error_to_retry(tmp_path: Path) -> None:
    with running_server(tmp_path, ready=False) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0)
        with client, pytest.raises(openai.InternalServerError) as caught:
            client.images.generate(prompt="a cat")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["x-should-retry"] == "true"
