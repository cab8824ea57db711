"""Runs as people and programs read them: a table, JSON with the machine beside it, and a picture."""

import csv
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from matplotlib.figure import Figure

from loadtests.outcomes import STAGES, Load

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def as_table(loads: Sequence[Load]) -> str:
    """Return one line for each run; times in milliseconds."""
    columns = ("offered/s", "answered/s", "p50", "p95", "p99", *STAGES, "answers")
    lines = ["  ".join(f"{column:>10}" for column in columns)]
    for load in loads:
        numbers = [
            f"{load.offered:.2f}",
            f"{load.answered:.2f}",
            *(f"{1000 * seconds:.0f}" for seconds in (load.p50_s, load.p95_s, load.p99_s)),
            *(f"{1000 * load.stages_s[stage]:.0f}" if stage in load.stages_s else "-" for stage in STAGES),
            " ".join(f"{status or 'broken'}:{count}" for status, count in load.statuses.items()),
        ]
        lines.append("  ".join(f"{number:>10}" for number in numbers))
    return "\n".join(lines)


def as_json(loads: Sequence[Load]) -> str:
    """Return the runs and where they were measured."""
    return json.dumps({"machine": machine(), "runs": [asdict(load) for load in loads]}, indent=1) + "\n"


def keep(rows: Sequence["DataclassInstance"], path: Path) -> None:
    """Add rows, dataclasses of one kind, to a CSV, which gets a header when it is new."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])])
        if new:
            writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def machine() -> dict[str, str | int]:
    """Return what a figure must be read with."""
    return {
        "cpu": _cpu(),
        "cores": psutil.cpu_count() or 0,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def plot(loads: Sequence[Load], path: Path) -> None:
    """Draw latency, and where it went, against the offered load, as a PNG."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    latency, split = figure.subplots(1, 2)
    offered = [load.offered for load in loads]
    for name in ("p50_s", "p95_s", "p99_s"):
        latency.plot(offered, [getattr(load, name) for load in loads], "o-", label=name.removesuffix("_s"))
    bottom = [0.0] * len(loads)
    width = 0.6 * min((b - a for a, b in pairwise(offered)), default=1.0)
    for stage in STAGES:
        heights = [load.stages_s.get(stage, 0.0) for load in loads]
        split.bar(offered, heights, width, bottom, label=stage)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for axes, title in ((latency, "latency"), (split, "where it went, mean")):
        axes.set(xlabel="requests offered a second", ylabel="seconds", title=title, ylim=(0, None))
        axes.legend()
    figure.savefig(path, format="png")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _commit() -> str:
    answer = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "unknown"
