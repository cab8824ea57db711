"""The command on this machine: rows for every shape and contestant, and clear answers to wrong arguments."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.bench.__main__ import main

ROOT = Path(__file__).resolve().parents[3]
CPU = ["--device", "cpu", "--models", "embedded", "--rounds", "2", "--steps", "2"]


@pytest.fixture(autouse=True)
def _leave_settings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def run(output: Path, *arguments: str) -> list[dict[str, str]]:
    assert main([*CPU, *arguments, "--output", str(output)]) == 0
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_shape_has_a_row_for_everyone(tmp_path: Path) -> None:
    shapes = ["--sides", "64", "--batches", "1", "2", "--mixed", "64", "80"]
    rows = run(tmp_path / "rows.csv", *shapes)
    assert [(row["shape"], row["implementation"]) for row in rows] == [
        (shape, name)
        for shape in ("64x64 batch 1", "64x64 batch 2", "mixed 64 80")
        for name in ("ours", "diffusers")
    ]
    for row in rows:
        stages = sum(float(row[f"{stage}_s"]) for stage in ("text", "start", "decode", "png"))
        assert 0 < float(row["step_p20_s"]) <= float(row["step_p50_s"]) <= float(row["step_p80_s"])
        assert stages < float(row["image_p80_s"])
        assert 0 < float(row["share_of_rate"]) < 10
        assert float(row["psnr_db"]) > 50, (
            "float32 makes the same picture, one value in a few thousand off by one"
        )
        assert row["peak_gib"] == "", "memory is counted on a GPU"
        assert row["rounds"] == "2"
        assert row["device"].endswith("threads")


def test_precisions_are_rows_beside_each_other(tmp_path: Path) -> None:
    arguments = ["--sides", "64", "--batches", "1", "--mixed", "--compare", "nobody"]
    rows = run(tmp_path / "rows.csv", *arguments, "--quantize", "none", "fp8")
    assert [row["implementation"] for row in rows] == ["ours", "ours fp8"]
    assert float(rows[0]["psnr_db"]) == float("inf")
    assert 20 < float(rows[1]["psnr_db"]) < 80


@pytest.mark.gpu
def test_a_gpu_counts_its_memory(tmp_path: Path) -> None:
    output = tmp_path / "rows.csv"
    arguments = [
        "--device",
        "cuda",
        "--models",
        "embedded",
        "--sides",
        "256",
        "--batches",
        "1",
        "4",
        "--rounds",
        "2",
    ]
    assert (
        main([*arguments, "--compare", "diffusers", "--compile-mode", "none", "--output", str(output)]) == 0
    )
    with output.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["implementation"] for row in rows] == ["ours", "diffusers"] * 2
    assert all(0.01 < float(row["peak_gib"]) < 10 for row in rows)
    assert all(float(row["psnr_db"]) > 25 for row in rows), "bfloat16 makes nearly the same picture"


def test_a_bare_gpu_host_has_all_that_it_imports() -> None:
    """The server's packages and diffusers are not there, and there is no network to fetch them."""
    absent = {"diffusers", "fastapi", "isal", "msgspec", "prometheus_client", "structlog", "server"}
    code = f"import sys, model.bench.__main__; print(sorted({absent} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sides", "100"], "width 100 is not a positive multiple of 16"),
        (["--mixed", "64", "0"], "width 0 is not a positive multiple of 16"),
        (["--device", "cuda:7"], "device cuda:7 was asked for"),
        (["--rounds", "0"], "--rounds: each must be at least 1"),
        (["--quantize", "fp8", "none"], "--compare diffusers runs on the first of --quantize"),
    ],
)
def test_a_wrong_argument_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert said in capsys.readouterr().err.splitlines()[-1]
