"""The AUTOMATIC1111 dialect: what interfaces ask before, while and after they have a picture made."""

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.decoder.pictures import file_of, gradient
from tests.server.http.fake_engine import FakeEngine, serving, wait_until
from tests.server.models import MODEL

ROOT = "/sdapi/v1"
TITLE = f"{MODEL.name} [{MODEL.digest[:10]}]"


def txt2img(client: httpx.Client, **sent: Any) -> httpx.Response:
    return client.post(f"{ROOT}/txt2img", json={"prompt": "a", "width": 256, "height": 256} | sent)


def img2img(client: httpx.Client, **sent: Any) -> httpx.Response:
    return client.post(f"{ROOT}/img2img", json={"prompt": "a", "width": 256, "height": 256} | sent)


def test_pictures_come_with_what_made_them(client: httpx.Client) -> None:
    answer = txt2img(client, seed=7, batch_size=2, n_iter=2, negative_prompt="b", steps=3).json()
    pictures = [Image.open(io.BytesIO(base64.b64decode(each, validate=True))) for each in answer["images"]]
    assert [(picture.size, picture.format) for picture in pictures] == [((256, 256), "PNG")] * 4
    assert answer["parameters"]["seed"] == 7
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert (info["seed"], info["width"], info["height"], info["steps"]) == (7, 256, 256, 3)
    assert info["infotexts"][1].startswith("a\nNegative prompt: b\nSteps: 3, Sampler: Euler, ")
    assert "Seed: 8, Size: 256x256, Model hash: d1d1d1d1d1, Model: fake" in info["infotexts"][1]


def test_what_open_webui_and_sillytavern_send_is_accepted(client: httpx.Client, engine: FakeEngine) -> None:
    sent = {
        "sampler_name": "DPM++ 2M",
        "scheduler": "karras",
        "steps": 22,
        "cfg_scale": 7.0,
        "width": "264",
        "height": 300.0,
        "restore_faces": False,
        "enable_hr": True,
        "hr_upscaler": "Latent",
        "hr_scale": 2,
        "denoising_strength": 0.7,
        "clip_skip": 1,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_model_checkpoint": "sd_xl_base"},
        "override_settings_restore_afterwards": True,
        "alwayson_scripts": {},
        "seed": -1,
        "subseed": -1,
        "save_images": True,
        "do_not_save_grid": False,
        "negative_prompt": None,
    }
    info = json.loads(txt2img(client, **sent).json()["info"])
    asked = engine.last()
    assert (asked.width, asked.height, asked.steps) == (256, 288, MODEL.max_steps)
    assert (asked.guidance_scale, asked.seed) == (0.0, info["seed"])
    assert info["seed"] >= 0


def test_defaults_are_the_original_s_where_the_model_has_none(
    client: httpx.Client, engine: FakeEngine
) -> None:
    client.post(f"{ROOT}/txt2img", json={})
    asked = engine.last()
    assert (asked.prompt, asked.width, asked.height, asked.num_images) == ("", 512, 512, 1)
    assert (asked.steps, asked.image_format) == (MODEL.default_steps, "png")


def test_pictures_may_be_left_out(client: httpx.Client) -> None:
    assert txt2img(client, send_images=False).json()["images"] == []


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"prompt": 5}, "prompt is 5; allowed: text"),
        ({"width": 255}, "width is 255; allowed: pixels from 256 to 1536; rounded down"),
        ({"height": 1552}, "height is 1552; allowed: pixels"),
        ({"steps": 0}, "steps is 0; allowed: a whole number"),
        ({"seed": -2}, "seed is -2; allowed: a whole number from 0, or -1"),
        ({"batch_size": 9}, "batch_size is 9; allowed: a whole number"),
        ({"batch_size": 3, "n_iter": 3}, "n_iter is 3 with batch_size 3; allowed: at most 8 pictures"),
        ({"override_settings": 5}, "override_settings is 5; allowed: an object"),
    ],
    ids=str,
)
def test_wrong_values_are_named(client: httpx.Client, sent: dict[str, Any], message: str) -> None:
    answer = txt2img(client, **sent)
    assert answer.status_code == 422
    error = answer.json()
    assert set(error) == {"error", "detail", "body", "errors"}
    assert error["detail"].startswith(message)


def test_a_picture_is_where_img2img_starts(client: httpx.Client, engine: FakeEngine) -> None:
    plain = base64.b64encode(file_of(gradient(512, 256))).decode()
    for sent in (plain, f"data:image/png;base64,{plain}"):
        answer = img2img(client, init_images=[sent], batch_size=2, seed=7)
        assert len(answer.json()["images"]) == 2
        assert json.loads(answer.json()["info"])["all_seeds"] == [7, 8]
        found = engine.last().source
        assert found is not None
        assert (found.strength, found.mask, len(found.pixels)) == (0.75, None, 256 * 256 * 3)
        assert len(answer.content) < 5000, "what was sent does not come back"


def test_resize_modes_are_stretching_cropping_and_filling(client: httpx.Client, engine: FakeEngine) -> None:
    wide = Image.new("RGB", (512, 256), "red")
    wide.paste("blue", (128, 0, 384, 256))
    sent = base64.b64encode(file_of(wide)).decode()
    colours = []
    for mode in range(4):
        img2img(client, init_images=[sent], resize_mode=mode)
        found = engine.last().source
        assert found is not None
        picture = Image.frombytes("RGB", (256, 256), found.pixels)
        colours.append([picture.getpixel((x, y)) for x, y in ((2, 128), (128, 128), (2, 2))])
    red, blue = (255, 0, 0), (0, 0, 255)
    assert colours == [[red, blue, red], [blue] * 3, [red, blue, red], [red, blue, red]]


def test_masks_are_light_or_dark_and_have_soft_edges(client: httpx.Client, engine: FakeEngine) -> None:
    mask = Image.new("L", (256, 256))
    mask.paste(255, (64, 64, 128, 128))
    sent = {
        "init_images": [base64.b64encode(file_of(gradient(256, 256))).decode()],
        "mask": base64.b64encode(file_of(mask)).decode(),
    }
    masks, blends = [], []
    for more in ({}, {"mask_blur": 0}, {"inpainting_mask_invert": 1}, {"denoising_strength": 0.5}):
        assert img2img(client, **sent, **more).status_code == 200
        found = engine.last().source
        assert found is not None
        masks.append(found.mask)
        blends.append(found.blend)
    assert masks[0] == masks[1] == masks[3] == blends[1] == mask.tobytes()
    assert blends[0] is not None
    assert len(set(blends[0])) > 20
    assert masks[2] == bytes(255 - value for value in mask.tobytes())
    assert found.strength == 0.5


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({}, "init_images is missing; it is a list of one"),
        ({"init_images": []}, "init_images is a list of 0 entries; allowed: a list of one"),
        ({"init_images": ["AAAA", "AAAA"]}, "init_images is a list of 2 entries; allowed: a list of one"),
        ({"init_images": ["AAAA"]}, "init_images is a file of another kind; allowed: a PNG, JPEG or WebP"),
        ({"init_images": [5]}, "init_images is 5"),
        (
            {"init_images": ["AAAA"], "denoising_strength": 0},
            "denoising_strength is 0; allowed: a number from 0.01",
        ),
        ({"init_images": ["http://example.com/a.png"]}, "since --allow-image-urls is off"),
    ],
    ids=str,
)
def test_what_img2img_cannot_start_from_is_refused(
    client: httpx.Client, sent: dict[str, Any], message: str
) -> None:
    answer = client.post(f"{ROOT}/img2img", json=sent)
    assert answer.status_code == 422
    assert message in answer.json()["detail"]


def test_the_model_is_found_by_those_who_look_for_it(client: httpx.Client) -> None:
    (model,) = client.get(f"{ROOT}/sd-models").json()
    assert (model["title"], model["model_name"], model["sha256"]) == (TITLE, MODEL.name, MODEL.digest)
    assert client.get(f"{ROOT}/options").json()["sd_model_checkpoint"] == TITLE
    assert client.get(f"{ROOT}/samplers").json()[0]["name"] == "Euler"
    assert client.get(f"{ROOT}/schedulers").json()[0]["name"] == "simple"
    memory = client.get(f"{ROOT}/memory").json()["ram"]
    assert memory["free"] + memory["used"] == memory["total"]


@pytest.mark.parametrize("name", ["upscalers", "latent-upscale-modes", "sd-vae", "loras"])
def test_lists_with_nothing_to_list_are_empty(client: httpx.Client, name: str) -> None:
    assert client.get(f"{ROOT}/{name}").json() == []


def test_another_model_is_accepted_unless_names_are_checked(client: httpx.Client) -> None:
    other = {"sd_model_checkpoint": "sd_xl_base_1.0.safetensors"}
    accepted = client.post(f"{ROOT}/options", json=other)
    assert (accepted.status_code, accepted.json()) == (200, None)
    with serving(FakeEngine(), strict_models=True) as url, httpx.Client(base_url=url) as strict:
        refused = strict.post(f"{ROOT}/options", json=other)
        assert refused.status_code == 404
        assert refused.json()["detail"].startswith('sd_model_checkpoint is "sd_xl_base_1.0.safetensors"; ')
        assert txt2img(strict, override_settings=other).status_code == 404
        for name in (TITLE, MODEL.name, "flux-schnell", ""):
            assert strict.post(f"{ROOT}/options", json={"sd_model_checkpoint": name}).status_code == 200


def test_steps_are_refused_where_they_are_not_clamped() -> None:
    with serving(FakeEngine(), clamp_steps="none") as url, httpx.Client(base_url=url) as client:
        answer = txt2img(client, steps=20)
        assert answer.status_code == 422
        assert answer.json()["detail"] == "steps is 20; allowed: a whole number from 1 to 12"


@pytest.fixture
def waiting() -> Iterator[tuple[httpx.Client, FakeEngine, Any]]:
    """A caller with a request of two pictures and four steps that is half way."""
    engine = FakeEngine()
    with (
        serving(engine) as url,
        httpx.Client(base_url=url, auth=("me", "secret"), timeout=20) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        asked = thread.submit(txt2img, client, prompt="wait", batch_size=2, steps=4)
        wait_until(lambda: bool(engine.held))
        yield client, engine, asked
        client.post(f"{ROOT}/interrupt")


def test_progress_is_that_of_the_caller(waiting: tuple[httpx.Client, FakeEngine, Any]) -> None:
    client, _, _ = waiting
    progress = client.get(f"{ROOT}/progress").json()
    assert progress["progress"] == 0.5
    assert progress["eta_relative"] > 0
    state = progress["state"]
    assert (state["job"], state["job_count"], state["job_no"]) == ("txt2img", 2, 0)
    assert (state["sampling_step"], state["sampling_steps"]) == (2, 4)
    other = httpx.get(f"{client.base_url}{ROOT}/progress").json()
    assert (other["progress"], other["state"]["job_count"]) == (0.0, 0)


def test_interrupting_ends_the_caller_s_work_and_nobody_else_s(
    waiting: tuple[httpx.Client, FakeEngine, Any],
) -> None:
    client, engine, asked = waiting
    assert httpx.post(f"{client.base_url}{ROOT}/interrupt").status_code == 200
    assert not asked.done()
    assert client.post(f"{ROOT}/interrupt").json() == {}
    answer = asked.result()
    assert (answer.status_code, answer.json()["error"]) == (499, "cancelled")
    wait_until(lambda: bool(engine.cancelled))
    assert client.get(f"{ROOT}/progress").json()["progress"] == 0
