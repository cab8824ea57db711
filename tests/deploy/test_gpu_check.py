"""deploy/gpu/check.sh, as far as it goes without a GPU: what it starts, what it leaves, how it ends."""

import os
import re
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "gpu" / "check.sh"
PARTS = ["tests", "targets", "kernels", "shapes"]
# Stands for Python: notes what it was started with, writes rows as the benchmarks do, and ends as it is told.
PYTHON = """#!/usr/bin/env bash
echo "$*" >> "$NOTES"
case "$2" in
    pytest) exit "${PYTEST_STATUS:-0}" ;;
    *) echo "$*" >> "${2//.//}/a-gpu.csv"; exit "${BENCH_STATUS:-0}" ;;
esac
"""


def checked(tmp_path: Path, **statuses: str) -> tuple[int, list[list[str]], Path]:
    """Run the script in a tree of its own; return its status, what it started, and its folder."""
    tree, rows, notes = tmp_path / "tree", tmp_path / "rows", tmp_path / "notes"
    for folder in ("deploy/gpu", "kernels/bench", "model/bench", "tests"):
        (tree / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tree / "deploy" / "gpu")
    (tree / "tests" / "test_on_a_gpu.py").write_text("@pytest.mark.gpu")
    (tree / "tests" / "test_anywhere.py").write_text("")
    (tree / "kernels" / "bench" / "another-gpu.csv").write_text("of an earlier run")
    os.utime(tree / "kernels" / "bench" / "another-gpu.csv", (0, 0))
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    environment = os.environ | {"PYTHON": str(python), "NOTES": str(notes)} | statuses
    ended = subprocess.run([tree / "deploy" / "gpu" / "check.sh", rows], env=environment, timeout=60)
    return ended.returncode, [line.split() for line in notes.read_text().splitlines()], rows


def test_it_is_bash(tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    assert SCRIPT.read_text().splitlines()[0] == "#!/usr/bin/env bash"
    assert subprocess.run([SCRIPT], capture_output=True).returncode == 64, "it wants a folder"


def test_it_runs_the_tests_and_both_benchmarks_and_leaves_their_rows(tmp_path: Path) -> None:
    status, started, rows = checked(tmp_path)
    assert status == 0
    assert [arguments[1] for arguments in started] == [
        "pytest",
        "model.bench",
        "kernels.bench",
        "model.bench",
    ]
    assert started[0][2:] == ["-m", "gpu", "tests/test_on_a_gpu.py"]
    assert sorted(path.name for path in rows.iterdir()) == sorted(
        ["kernels-a-gpu.csv", "model-a-gpu.csv", *(f"{part}.log" for part in PARTS)]
    )


@pytest.mark.parametrize(
    ("pytest_status", "bench_status", "status"), [("1", "0", 1), ("0", "3", 3), ("2", "1", 2)]
)
def test_what_fails_keeps_nothing_from_running_and_is_not_forgotten(
    tmp_path: Path, pytest_status: str, bench_status: str, status: int
) -> None:
    ended, started, _ = checked(tmp_path, PYTEST_STATUS=pytest_status, BENCH_STATUS=bench_status)
    assert len(started) == len(PARTS)
    assert ended == status


def test_it_ends_within_eight_minutes() -> None:
    limits = [int(seconds) for seconds in re.findall(r"^part \w+ (\d+) ", SCRIPT.read_text(), re.MULTILINE)]
    assert len(limits) == len(PARTS)
    assert sum(limits) + 5 * len(limits) <= 8 * 60, "each may take five more seconds to die"


@pytest.mark.parametrize("module", ["model.bench", "kernels.bench"])
def test_the_benchmarks_know_every_option_that_they_are_given(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, started, _ = checked(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)  # it is run, not imported
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    given = {
        each for arguments in started if arguments[1] == module for each in arguments if each[:2] == "--"
    }
    assert given
    assert given <= known
