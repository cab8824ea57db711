"""The dialects of self-hosted interfaces on the real server: Hugging Face's client, AUTOMATIC1111, Cog."""

import asyncio
import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image

from tests.e2e.conftest import Server
from tests.server.decoder.pictures import file_of, gradient

LARGE = {"width": 1024, "height": 1024, "steps": 12, "batch_size": 8}  # seconds of work on any CPU


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


@pytest.fixture
def hugging(server: Server) -> InferenceClient:
    return InferenceClient(model=f"{server.url}/hf")


def test_hugging_face_s_clients_get_the_same_picture(hugging: InferenceClient, server: Server) -> None:
    sent: dict[str, Any] = {"width": 272, "height": 256, "num_inference_steps": 1, "seed": 5}
    image = hugging.text_to_image("a red circle", **sent)
    assert image.size == (272, 256)

    async def ask() -> Image.Image:
        async with AsyncInferenceClient(base_url=f"{server.url}/hf") as client:
            return await client.text_to_image("a red circle", **sent)

    again = asyncio.run(ask())
    assert again.tobytes() == image.tobytes()


def test_hugging_face_s_client_starts_from_a_picture(hugging: InferenceClient) -> None:
    sent = file_of(gradient(272, 256), "JPEG")
    assert hugging.image_to_image(sent, prompt="a red circle", strength=0.5).size == (272, 256)


def test_an_interface_starts_from_a_picture(server: Server) -> None:
    sent = {
        "prompt": "a red circle",
        "init_images": [base64.b64encode(file_of(gradient(512, 256))).decode()],
        "denoising_strength": 0.5,
        "width": 256,
        "height": 256,
        "steps": 2,
    }
    answer = httpx.post(f"{server.url}/sdapi/v1/img2img", json=sent | {"resize_mode": 1}, timeout=60).json()
    assert picture(answer["images"][0]).size == (256, 256)


def test_hugging_face_s_client_names_what_is_wrong(hugging: InferenceClient) -> None:
    with pytest.raises(HfHubHTTPError, match=r"parameters\.width is 100; allowed: a multiple of 16"):
        hugging.text_to_image("a", width=100)


def test_an_interface_finds_the_model_and_gets_its_pictures(server: Server) -> None:
    """What Open WebUI and SillyTavern call, in their order."""
    with httpx.Client(base_url=f"{server.url}/sdapi/v1", timeout=60) as client:
        title = client.get("/options").json()["sd_model_checkpoint"]
        assert title in [model["title"] for model in client.get("/sd-models").json()]
        client.post("/options", json={"sd_model_checkpoint": title}).raise_for_status()
        sent = {"prompt": "a cat", "width": 256, "height": 263, "steps": 2, "batch_size": 2, "seed": -1}
        answer = client.post("/txt2img", json=sent | {"sampler_name": "Euler a", "cfg_scale": 7}).json()
    info = json.loads(answer["info"])
    assert [picture(text).size for text in answer["images"]] == [(256, 256)] * 2
    assert info["all_seeds"] == [info["seed"], info["seed"] + 1]
    assert answer["images"][0] != answer["images"][1]


def test_progress_moves_and_an_interrupt_ends_the_work(server: Server) -> None:
    with ThreadPoolExecutor(1) as thread, httpx.Client(base_url=f"{server.url}/sdapi/v1") as client:
        asked = thread.submit(httpx.post, f"{server.url}/sdapi/v1/txt2img", json=LARGE, timeout=20)
        while (progress := client.get("/progress").json())["progress"] == 0:
            assert not asked.done()
            time.sleep(0.01)
        assert progress["progress"] < 1
        assert progress["state"]["job_count"] == 8
        assert 0 < progress["state"]["sampling_step"] <= 12
        client.post("/interrupt").raise_for_status()
        assert asked.result().status_code == 499
        assert client.get("/progress").json()["state"]["job_count"] == 0


def test_predictions_come_as_addresses_and_are_cancelled(server: Server) -> None:
    sent: dict[str, Any] = {"prompt": "a cat", "megapixels": "0.25", "num_inference_steps": 1, "seed": 3}
    with ThreadPoolExecutor(1) as thread, httpx.Client(base_url=server.url, timeout=60) as client:
        answer = client.post("/predictions", json={"input": sent | {"num_outputs": 2, "aspect_ratio": "1:1"}})
        first, second = (address.partition(",") for address in answer.json()["output"])
        assert first[0] == second[0] == "data:image/webp;base64"
        assert picture(first[2]).size == (512, 512)
        assert first[2] != second[2]
        assert answer.json()["logs"] == "Using seed: 3\n"
        large = {"input": {"prompt": "a", "num_outputs": 4, "num_inference_steps": 12}}
        running = thread.submit(httpx.put, f"{server.url}/predictions/large", json=large, timeout=60)
        while client.post("/predictions/large/cancel").status_code == 404:
            assert not running.done()
            time.sleep(0.01)
        assert running.result().json()["status"] == "canceled"


def test_clients_that_leave_free_the_device(server: Server) -> None:
    for path, body in (
        ("/sdapi/v1/txt2img", LARGE),
        ("/predictions", {"input": {"prompt": "a", "num_outputs": 4, "num_inference_steps": 12}}),
        ("/hf", {"inputs": "a", "parameters": {"width": 1536, "height": 1536, "num_inference_steps": 12}}),
    ):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}{path}", json=body, timeout=0.2)
    small = {"inputs": "a", "parameters": {"num_inference_steps": 1}}
    assert httpx.post(f"{server.url}/hf", json=small, timeout=60).status_code == 200
    metrics = httpx.get(f"{server.url}/metrics").text
    assert "flux_backlog_device_seconds 0.0" in metrics
