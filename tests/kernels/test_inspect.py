"""Every kernel compiles for every architecture, without a GPU, and is what it should be."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels.inspect import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[2]


def inspected(*arguments: str) -> list[dict[str, str]]:
    """What `python -m kernels.inspect` prints, in a process of its own: here kernels are interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ended = subprocess.run(
        [sys.executable, "-m", "kernels.inspect", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return list(csv.DictReader(io.StringIO(ended.stdout)))


@pytest.fixture(scope="module")
def printed() -> list[dict[str, str]]:
    """The rows of every kernel in bfloat16."""
    return inspected("--dtypes", "bfloat16")


@pytest.fixture(params=ARCHITECTURES, ids=lambda architecture: f"sm_{architecture}")
def reports(request: pytest.FixtureRequest, printed: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows of one architecture."""
    return [row for row in printed if row["architecture"] == f"sm_{request.param}"]


def test_nothing_spills_and_everything_fits(reports: list[dict[str, str]]) -> None:
    has_one_loop = reports[0]["architecture"] in ("sm_90", "sm_100")
    quantizing = reports[0]["architecture"] != "sm_80"  # which has no e4m3
    assert len(reports) == 18 + 2 * has_one_loop + 4 * quantizing
    for report in reports:
        assert (report["spilled_bytes"], report["stack_bytes"]) == ("0", "0"), report
        limit = ARCHITECTURES[int(report["architecture"].removeprefix("sm_"))]
        assert int(report["shared_bytes"]) <= limit, report


def test_adapters_of_the_highest_rank_fit_in_float32_too() -> None:
    """Where there is least: 99 KiB of shared memory and no tensor memory."""
    (report,) = inspected("--architectures", "89", "--dtypes", "float32", "--only", "low_rank_add 128")
    assert (report["spilled_bytes"], report["stack_bytes"]) == ("0", "0"), report
    assert int(report["shared_bytes"]) <= ARCHITECTURES[89], report


def test_attention_and_products_use_what_the_architecture_has(reports: list[dict[str, str]]) -> None:
    for report in reports:
        if report["kernel"] not in ("_attention", "_matmul"):
            continue
        if report["architecture"] == "sm_90":
            assert int(report["HGMMA"]) > 0, report
        if report["architecture"] in ("sm_80", "sm_89", "sm_120"):
            assert int(report["HMMA"]) > 0, report
        descriptors = report["architecture"] not in ("sm_80", "sm_89")
        assert (int(report["UTMALDG"]) > 0) == descriptors, report
        assert (int(report["USETMAXREG"]) > 0) == ("specialised" in report["op"]), report
