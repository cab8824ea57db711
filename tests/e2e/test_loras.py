"""LoRAs on the real server: put, asked for in company, removed, and there again after a restart."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from model.checkpoint import open_checkpoint
from model.transformer import Transformer
from server.settings import EMBEDDED_MODEL
from tests.e2e.conftest import Server, running_server
from tests.model import adapter_files as files

TYPE = {"Content-Type": "application/octet-stream"}
BODY = {"prompt": "a red circle", "seed": 7, "num_inference_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of the embedded model by two tools, and one of another model."""
    folder = tmp_path_factory.mktemp("loras")
    with torch.device("meta"):
        transformer = Transformer(open_checkpoint(EMBEDDED_MODEL).transformer_config)
    files.write(folder / "strong.safetensors", files.peft(files.split(transformer, rank=4, seed=1)))
    files.write(folder / "other.safetensors", files.kohya(files.fused(transformer, rank=2, seed=2)))
    files.write(folder / "foreign.safetensors", {"img_in.lora_A.weight": torch.ones(1, 9)})
    return folder


def put(server: Server, name: str, path: Path) -> httpx.Response:
    return httpx.put(f"{server.url}/v1/loras/{name}", content=path.read_bytes(), headers=TYPE, timeout=60)


def names(server: Server) -> list[str]:
    return [each["name"] for each in httpx.get(f"{server.url}/v1/loras").json()["loras"]]


@pytest.fixture(scope="module")
def serving(server: Server, folder: Path) -> Iterator[Server]:
    """The server of all tests, with two adapters that are gone again afterwards."""
    for name in ("strong", "other"):
        assert put(server, name, folder / f"{name}.safetensors").status_code == 200
    yield server
    for name in ("strong", "other"):
        assert httpx.delete(f"{server.url}/v1/loras/{name}").status_code == 200
    assert names(server) == []


def picture(server: Server, *loras: tuple[str, float], **body: Any) -> bytes:
    asked = [{"name": name, "scale": scale} for name, scale in loras]
    answer = httpx.post(f"{server.url}/v1/generate", json=BODY | {"loras": asked} | body, timeout=120)
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["images"][0]["b64_json"])


def test_rows_with_different_adapters_share_steps_and_change_no_byte_of_each_other(serving: Server) -> None:
    asked: list[list[tuple[str, float]]] = [
        [],
        [("strong", 1.0)],
        [("strong", 0.0)],
        [("other", -0.5)],
        [("other", 0.5), ("strong", 0.25)],
    ]
    alone = [picture(serving, *each) for each in asked]
    assert alone[2] == alone[0]
    assert len(set(alone)) == len(alone) - 1
    with ThreadPoolExecutor(len(asked)) as threads:
        together = list(threads.map(lambda each: picture(serving, *each), asked * 2))
    assert together == alone * 2
    assert alone[0] == picture(serving)
    from_one = {"image": f"data:image/png;base64,{base64.b64encode(alone[0]).decode()}", "strength": 0.6}
    assert picture(serving, ("strong", 1.0), **from_one) not in (alone[1], picture(serving, **from_one))


def test_the_model_may_be_named_by_its_adapter(serving: Server) -> None:
    body = {"model": "strong", "prompt": BODY["prompt"], "seed": BODY["seed"], "steps": 2, "size": "256x256"}
    answer = httpx.post(f"{serving.url}/v1/images/generations", json=body, timeout=60).json()
    assert base64.b64decode(answer["data"][0]["b64_json"]) == picture(serving, ("strong", 1.0))


def test_what_is_no_adapter_is_told_why_and_leaves_nothing(serving: Server, folder: Path) -> None:
    before = names(serving)
    answer = put(serving, "foreign", folder / "foreign.safetensors")
    assert answer.status_code == 422
    message = answer.json()["error"]["message"]
    assert message == "this is no adapter that can be served: of layer 'img_in' it has only down"
    assert names(serving) == before


def test_what_was_put_survives_a_kill_and_what_was_given_goes_with_the_flag(
    tmp_path: Path, folder: Path
) -> None:
    given = f"style={folder / 'other.safetensors'}"
    with running_server(tmp_path, "--lora", given) as server:
        assert put(server, "kept", folder / "strong.safetensors").status_code == 200
        assert names(server) == ["style", "kept"]
        assert httpx.delete(f"{server.url}/v1/loras/style").status_code == 422
        wanted = picture(server, ("kept", 1.0))
        server.process.kill()
        server.process.wait()
    with running_server(tmp_path) as server:
        assert names(server) == ["kept"]
        assert picture(server, ("kept", 1.0)) == wanted


def test_a_bad_file_ends_the_start_with_a_line_that_names_it(tmp_path: Path, folder: Path) -> None:
    bad = folder / "foreign.safetensors"
    with running_server(tmp_path, "--lora", str(bad), ready=False) as server:
        assert server.process.wait(60) == 3
        line = server.log.strip().splitlines()[-1]
    assert line == f"schnell-server: the model cannot be served: {bad}: of layer 'img_in' it has only down"
