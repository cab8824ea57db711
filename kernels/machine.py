"""The machine that a benchmark runs on: what it is, what it does at best, and the file of its rows."""

import csv
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, Protocol, TypeVar

import torch

from kernels import onednn
from kernels.cases import Case

TRIALS = 9


class IsDataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


Row = TypeVar("Row", bound=IsDataclass)


@dataclass(frozen=True, slots=True)
class Roof:
    """What the machine does at best, in the same run."""

    bytes_per_s: float
    flops_per_s: float

    def __str__(self) -> str:
        return f"{self.bytes_per_s / 1e9:.0f} GB/s copied, {self.flops_per_s / 1e12:.3g} TFLOP/s multiplied"

    def floor_s(self, case: Case) -> float:
        return max(case.bytes_moved / self.bytes_per_s, case.flops / self.flops_per_s)


def describe_machine(device: torch.device) -> dict[str, str]:
    """Return the columns that every row of a benchmark ends with."""
    on_gpu = device.type == "cuda"
    query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _describe_cpu(),
        "driver": _said_by(*query) if on_gpu else "none",
        "torch": torch.__version__,
        "triton": _version("triton"),
        "commit": _said_by("git", "describe", "--always", "--dirty"),
    }


def csv_name(machine: dict[str, str]) -> str:
    """Return the name of the file that this machine's rows go to."""
    return re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-") + ".csv"


@contextmanager
def appending(path: Path, row_type: type[Row]) -> Iterator[Callable[[Row], None]]:
    """Yield what writes a row, a dataclass, to the end of a CSV; what was written stays if the run does not.

    Numbers are written in six digits, which is more than a measurement has.
    Raises `ValueError` for a file whose columns are others.
    """
    columns = [field.name for field in fields(row_type)]
    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        found = next(csv.reader(file), None)
        if found not in (None, columns):
            raise ValueError(f"{path} has the columns {found}, its rows would have {columns}; move it away")
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if found is None:
            writer.writeheader()

        def write(row: Row) -> None:
            cells = asdict(row)
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in cells.items()})
            file.flush()

        yield write


def measure_roof(device: torch.device, dtype: torch.dtype) -> Roof:
    """Copy much memory and multiply large random matrices: 1 GiB and 8192 squared on a GPU."""
    size, side, repeats = (1 << 30, 8192, 10) if device.type == "cuda" else (1 << 27, 2048, 1)
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    products: list[Callable[[], object]] = [lambda: a @ b]
    if device.type == "cpu" and dtype == torch.float32 and onednn.is_available():
        products.append(lambda: onednn.linear(a, b, b[0], (side,)))
    copy_s = _seconds(lambda: target.copy_(source), device, repeats)
    product_s = min(_seconds(product, device, repeats) for product in products)
    return Roof(2 * size / copy_s, 2 * side**3 / product_s)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median seconds of a call, `repeats` of them in a row so that launching is not counted."""
    trials = []
    for _ in range(TRIALS + 1):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronize(device)
        trials.append((time.perf_counter() - began) / repeats)
    return median(trials[1:])  # the first warms up


def _describe_cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _said_by(*command: str) -> str:
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parent
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return ended.stdout.split("\n")[0].strip()
