"""The main job: concurrent requests of many kinds, each answered with its own right picture."""

import base64
import io
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from server.costs import KeptTable
from tests.e2e.conftest import ROOT, Server, running_server

PNG = {"Accept": "image/png"}


def generate(server: Server, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/generate", json=body, headers=PNG, timeout=120)


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def test_the_picture_is_the_one_that_diffusers_makes(server: Server) -> None:
    body = {"prompt": "a red circle", "seed": 7, "width": 272, "height": 256, "num_inference_steps": 3}
    response = generate(server, **body)
    assert response.status_code == 200
    oracle = FluxPipeline.from_pretrained(ROOT / "model" / "tiny", dtype=torch.float32)
    oracle.set_progress_bar_config(disable=True)
    (expected,) = oracle(
        body["prompt"],
        width=272,
        height=256,
        num_inference_steps=3,
        max_sequence_length=128,
        generator=torch.Generator().manual_seed(7),
    ).images
    assert np.abs(pixels(response.content).astype(int) - np.asarray(expected).astype(int)).max() <= 1


def mixed_requests() -> list[dict[str, Any]]:
    sizes = [(256, 256), (384, 256), (256, 384), (272, 496)]
    return [
        {
            "prompt": f"{index % 3 + 1} green stars",
            "seed": index,
            "width": sizes[index % 4][0],
            "height": sizes[index % 4][1],
            "num_inference_steps": 1 + index % 4,
            "max_sequence_length": 64 * (1 + index % 2),
            "guidance_scale": 3.0 if index % 5 == 0 else 0.0,
        }
        for index in range(16)
    ]


def test_sixteen_at_once_give_byte_for_byte_what_each_gives_alone(tmp_path: Path) -> None:
    """Without a prompt cache, so that company shows in the text encoders too.

    Sharing does not pay on a CPU, so the server is told that its steps are launch-bound.
    """
    bodies = mixed_requests()
    arguments = ("--conditioning-cache-mb", "0", "--calibration-s", "0.1", "--data-dir", str(tmp_path))
    with running_server(tmp_path, *arguments) as server:
        server.stop()
    (costs,) = (tmp_path / "costs").iterdir()
    kept = msgspec.json.decode(costs.read_bytes(), type=KeptTable)
    table = msgspec.structs.replace(kept.table, step_floor_s=1.0, mixing=1.0, ratios={})
    costs.write_bytes(msgspec.json.encode(KeptTable(key=kept.key, table=table)))
    with running_server(tmp_path, *arguments) as server, ThreadPoolExecutor(16) as clients:
        together = list(clients.map(lambda body: generate(server, **body).content, bodies))
        metrics = httpx.get(f"{server.url}/metrics").text
        alone = [generate(server, **body).content for body in bodies]
    assert together == alone
    assert len(set(alone)) == 16
    shared = [
        line for line in metrics.splitlines() if line.startswith('flux_step_images_bucket{kind="denoise"')
    ]
    counts = {line.split('le="')[1].split('"')[0]: float(line.split()[-1]) for line in shared}
    assert counts["1.0"] < counts["+Inf"], "no step was shared, so nothing was shown"


def test_json_carries_every_picture_with_its_seed(server: Server) -> None:
    body = {"prompt": "three fish", "seed": 5, "num_images": 3}
    answer = httpx.post(f"{server.url}/v1/generate", json=body, timeout=60).json()
    assert [image["seed"] for image in answer["images"]] == [5, 6, 7]
    assert answer["num_inference_steps"] == 4
    second = base64.b64decode(answer["images"][1]["b64_json"])
    assert second == generate(server, prompt="three fish", seed=6).content
    assert answer["timings"]["total_s"] >= answer["timings"]["denoise_s"] > 0


def test_a_drawn_seed_is_told_and_gives_the_picture_again(server: Server) -> None:
    first = generate(server, prompt="a boat")
    seed = int(first.headers["X-Seed"])
    assert seed < 2**32
    assert generate(server, prompt="a boat", seed=seed).content == first.content


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_accept_chooses_the_format(server: Server, kind: str) -> None:
    response = httpx.post(
        f"{server.url}/v1/generate", json={"prompt": "a cat"}, headers={"Accept": f"image/{kind}"}, timeout=60
    )
    assert response.headers["content-type"] == f"image/{kind}"
    with Image.open(io.BytesIO(response.content)) as image:
        assert image.format == kind.upper()


def test_the_file_says_what_made_it_and_keeps_the_prompt_to_itself(server: Server) -> None:
    def texts(**body: Any) -> dict[str, str]:
        with Image.open(io.BytesIO(generate(server, prompt="a sécret", seed=1, **body).content)) as image:
            image.load()
            return dict(image.text)

    plain = texts()
    assert (plain["seed"], plain["size"], plain["steps"], plain["numerics"]) == ("1", "256x256", "4", "exact")
    assert "prompt" not in plain
    assert "trainedAlgorithmicMedia" in plain["XML:com.adobe.xmp"]
    assert texts(embed_prompt=True)["prompt"] == "a sécret"


def test_an_address_gives_a_picture_that_caches_know(server: Server) -> None:
    url = f"{server.url}/v1/generate?prompt=a%20house&seed=3&width=256"
    first = httpx.get(url, timeout=60)
    assert first.headers["content-type"] == "image/png"
    assert first.headers["cache-control"].startswith("public, max-age=")
    again = httpx.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = httpx.get(url + "1", headers={"If-None-Match": first.headers["etag"]}, timeout=60)
    assert other.status_code == 422  # width=2561
    unseeded = httpx.get(f"{server.url}/v1/generate?prompt=a", timeout=60)
    assert "etag" not in unseeded.headers
    assert unseeded.headers["cache-control"] == "no-store"


def test_every_answer_tells_its_id_and_timings(server: Server) -> None:
    response = httpx.post(
        f"{server.url}/v1/generate",
        json={"prompt": "a cat"},
        headers={"X-Request-Id": "my-request-1"},
        timeout=60,
    )
    assert response.headers["x-request-id"] == "my-request-1"
    names = [each.split(";")[0].strip() for each in response.headers["server-timing"].split(",")]
    assert names == ["queue", "text", "denoise", "decode", "encode", "predicted", "total"]
    assert re.search(r'queue;dur=[\d.]+;desc="position \d+"', response.headers["server-timing"])
    assert response.headers["x-steps"] == "4"
    assert response.json()["timings"]["predicted_s"] > 0


def test_the_status_tells_of_the_latest_requests_and_steps(server: Server) -> None:
    generate(server, prompt="a tree", seed=1)
    status = httpx.get(f"{server.url}/v1/status").json()
    assert (status["state"], status["queue"]["auto_steps"]) == ("ready", 4)
    assert status["queue"]["predicted_s"] > 0
    assert [worker["state"] for worker in status["workers"]] == ["ready"]
    assert status["model"]["digest"][:16] in httpx.get(f"{server.url}/metrics").text
    assert {"queue", "denoise", "total"} <= set(status["recent"]["latencies"])
    steps = status["recent"]["steps"]
    assert steps["images"] >= 1
    assert 0 < steps["efficiency"] <= 1


def test_prompts_stay_out_of_the_log_and_the_metrics(server: Server) -> None:
    generate(server, prompt="zanzibar canary")
    httpx.post(f"{server.url}/v1/generate", json={"prompt": "zanzibar canary", "width": 3})
    assert "zanzibar" not in server.log
    assert "zanzibar" not in httpx.get(f"{server.url}/metrics").text


def test_requests_with_the_same_id_do_not_meet(server: Server) -> None:
    def ask(seed: int) -> bytes:
        body = {"prompt": "a fish", "seed": seed, "width": 384}
        headers = PNG | {"X-Request-Id": "everybody-has-this"}
        return httpx.post(f"{server.url}/v1/generate", json=body, headers=headers, timeout=60).content

    with ThreadPoolExecutor(6) as clients:
        together = list(clients.map(ask, range(6)))
    assert together == [generate(server, prompt="a fish", seed=seed, width=384).content for seed in range(6)]


def test_a_prompt_that_comes_again_is_a_hit(server: Server) -> None:
    def look_ups(outcome: str) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        name = f'flux_conditioning_cache_total{{outcome="{outcome}"}} '
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)), 0.0)

    hits, misses = look_ups("hit"), look_ups("miss")
    for seed in range(3):
        generate(server, prompt="a prompt that no other test has", seed=seed)
    assert (look_ups("hit") - hits, look_ups("miss") - misses) == (2, 1)


def test_auto_steps_are_told(server: Server) -> None:
    body = {"prompt": "a cat", "num_inference_steps": "auto"}
    assert httpx.post(f"{server.url}/v1/generate", json=body, timeout=60).json()["num_inference_steps"] == 4


def test_the_documentation_describes_every_route(server: Server) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert {"/v1/generate", "/v1/images/generations", "/v1/models", "/readyz", "/metrics"} <= set(paths)
    page = httpx.get(f"{server.url}/docs")
    assert "openapi.json" in page.text
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "https://" not in page.text


def test_the_command_line_makes_the_servers_picture(server: Server, tmp_path: Path) -> None:
    from model.generate import main

    assert main(["a red circle", "--seed", "7", "-o", str(tmp_path / "out.png")]) == 0
    ours = pixels((tmp_path / "out.png").read_bytes())
    assert np.array_equal(ours, pixels(generate(server, prompt="a red circle", seed=7).content))


def test_the_digest_in_a_file_is_that_of_the_served_model(server: Server) -> None:
    with Image.open(io.BytesIO(generate(server, prompt="a", seed=1).content)) as image:
        image.load()
        digest = image.text["model_digest"]
    assert f'digest="{digest[:16]}"' in httpx.get(f"{server.url}/metrics").text
