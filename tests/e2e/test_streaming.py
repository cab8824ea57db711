"""Streams of the real server: previews of the running picture, and the picture that there is without them."""

import base64
import io
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.e2e.conftest import Server

BODY = {"prompt": "a red circle on a blue background", "seed": 5, "num_inference_steps": 12}
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as made:
        yield made


def pixels(b64: str, *, side: int = 128) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(b64))) as file:
        return np.asarray(file.convert("RGB").resize((side, side)), float)


def generate(server: Server, **changes: Any) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{server.url}/v1/generate", json=BODY | changes, timeout=60).json()
    return answer


def test_the_official_client_gets_previews_and_the_picture(server: Server, client: openai.OpenAI) -> None:
    found: list[Any] = list(
        client.images.generate(
            prompt=str(BODY["prompt"]),
            size="256x256",
            stream=True,
            partial_images=2,
            extra_body={"seed": BODY["seed"], "num_inference_steps": BODY["num_inference_steps"]},
        )
    )
    *partial, completed = found
    indices = [event.partial_image_index for event in partial]
    assert indices in ([0, 1], [0], [1]), "a busy machine may leave one out"
    final = pixels(completed.b64_json)
    for event in partial:
        # Half of what a grey picture would be away from it: it is this picture that is shown.
        assert np.abs(pixels(event.b64_json) - final).mean() < np.abs(128 - final).mean() / 2
    assert completed.b64_json == generate(server)["images"][0]["b64_json"]


def test_a_native_stream_counts_the_steps_and_ends_with_the_answer(server: Server) -> None:
    lines: list[str] = []
    with httpx.stream(
        "POST", f"{server.url}/v1/generate", json=BODY | {"previews": 3}, headers=EVENTS, timeout=60
    ) as answer:
        lines.extend(answer.iter_lines())
    names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    data = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: ")]
    told = list(zip(names, data, strict=True))
    assert (names[0], names[-1]) == ("queued", "done")
    assert [each["step"] for name, each in told if name == "step"] == list(range(1, 13))
    shown = [each for name, each in told if name == "preview"]
    assert shown
    for each in shown:
        assert each["step"] == (3, 6, 9)[each["index"]]
        with Image.open(io.BytesIO(base64.b64decode(each["b64_json"]))) as file:
            assert (file.format, file.size) == ("PNG", (128, 128))
            assert file.info["seed"] == "5", "what made it is written into a preview too"
    assert data[-1]["images"] == generate(server)["images"]


def test_leaving_a_stream_ends_its_work(server: Server, client: openai.OpenAI) -> None:
    with client.images.generate(
        prompt="a cat", size="512x512", stream=True, partial_images=1, extra_body={"steps": 12}
    ):
        assert backlog_s(server) > 0
    deadline = time.monotonic() + 10
    while backlog_s(server) > 0:
        assert time.monotonic() < deadline, "the work goes on for nobody"
        time.sleep(0.02)


def backlog_s(server: Server) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    (line,) = (line for line in text.splitlines() if line.startswith("flux_backlog_device_seconds "))
    return float(line.split()[1])
