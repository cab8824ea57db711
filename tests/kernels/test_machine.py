"""What the rows of a benchmark say of the machine, and how its best is measured."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kernels.machine import Roof, appending, csv_name, describe_machine, measure_roof

CPU = torch.device("cpu")


def test_a_cpu_is_described_with_its_threads() -> None:
    machine = describe_machine(CPU)
    assert list(machine) == ["device", "driver", "torch", "triton", "commit"]
    assert machine["device"].endswith(f", {torch.get_num_threads()} threads")
    assert machine["torch"] == torch.__version__
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?|unknown", machine["commit"])


def test_rows_of_one_machine_go_to_one_file() -> None:
    assert csv_name({"device": "NVIDIA H200"}) == "nvidia-h200.csv"
    assert csv_name({"device": "AMD EPYC (Zen 5), 2 threads"}) == "amd-epyc-zen-5-2-threads.csv"


@dataclass
class Measured:
    op: str
    seconds: float


def test_rows_are_added_to_those_of_earlier_runs(tmp_path: Path) -> None:
    file = tmp_path / "a-gpu.csv"
    for row, written in (
        (Measured("norm", 0.5), "norm,0.5\n"),
        (Measured("linear", 2 / 3), "linear,0.666667\n"),
    ):
        with appending(file, Measured) as write:
            write(row)
            assert file.read_text().endswith(written), "at once, not at the end"
    assert file.read_text() == "op,seconds\nnorm,0.5\nlinear,0.666667\n"


def test_a_file_with_other_columns_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "a-gpu.csv"
    file.write_text("op,bytes\nnorm,4\n")
    others = r"has the columns \['op', 'bytes'\].*move it away"
    with pytest.raises(ValueError, match=others), appending(file, Measured):
        pass
    assert file.read_text() == "op,bytes\nnorm,4\n"


def test_the_roof_is_what_this_machine_copies_and_multiplies() -> None:
    roof = measure_roof(CPU, torch.float32)
    assert 1e8 < roof.bytes_per_s < 1e13  # no computer is outside
    assert 1e8 < roof.flops_per_s < 1e15
    assert str(Roof(4.3e12, 790e12)) == "4300 GB/s copied, 790 TFLOP/s multiplied"
