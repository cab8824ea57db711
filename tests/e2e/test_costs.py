"""What steps cost is measured at the first start, kept, and decides what shares a step."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from server.costs import KeptTable
from tests.e2e.conftest import Server, running_server

ARGUMENTS = ("--conditioning-cache-mb", "0", "--calibration-s", "0.5")


def generate(server: Server, body: dict[str, Any]) -> bytes:
    answer = httpx.post(f"{server.url}/v1/generate", json=body, headers={"Accept": "image/png"}, timeout=120)
    assert answer.status_code == 200
    return answer.content


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a server leaves that has measured its steps and made a picture."""
    folder = tmp_path_factory.mktemp("first")
    with running_server(folder, *ARGUMENTS) as server:
        assert "costs_measured" in server.log
        generate(server, {"prompt": "a tree", "seed": 1})
        assert server.stop() == 0
    return folder


def kept(data_dir: Path) -> tuple[Path, KeptTable]:
    (path,) = (data_dir / "costs").iterdir()
    return path, msgspec.json.decode(path.read_bytes(), type=KeptTable)


def test_what_was_learned_while_serving_is_kept_too(data_dir: Path) -> None:
    assert kept(data_dir)[1].table.ratios


def mixed_requests() -> list[dict[str, Any]]:
    sizes = [(256, 256), (288, 256), (256, 304), (272, 336)]
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


def test_sixteen_at_once_give_byte_for_byte_what_each_gives_alone(data_dir: Path, tmp_path: Path) -> None:
    """Without a prompt cache, so that company shows in the text encoders too.

    Sharing does not pay on a CPU, so the server is told that its steps are launch-bound: that it shares some
    shows that it took the table that was kept.
    """
    path, first = kept(data_dir)
    table = msgspec.structs.replace(first.table, step_floor_s=1.0, mixing=1.0, ratios={})
    (tmp_path / "costs").mkdir()
    (tmp_path / "costs" / path.name).write_bytes(msgspec.json.encode(KeptTable(key=first.key, table=table)))
    bodies = mixed_requests()
    with running_server(tmp_path, *ARGUMENTS) as server, ThreadPoolExecutor(16) as clients:
        assert "costs_loaded" in server.log
        assert "costs_measured" not in server.log
        together = list(clients.map(lambda body: generate(server, body), bodies))
        metrics = httpx.get(f"{server.url}/metrics").text
        alone = [generate(server, body) for body in bodies]
    assert together == alone
    assert len(set(alone)) == 16
    shared = [
        line for line in metrics.splitlines() if line.startswith('flux_step_images_bucket{kind="denoise"')
    ]
    counts = {line.split('le="')[1].split('"')[0]: float(line.split()[-1]) for line in shared}
    assert counts["1.0"] < counts["+Inf"], "no step was shared, so nothing was shown"
