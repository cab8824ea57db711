"""The report's picture."""

from pathlib import Path

from PIL import Image

from loadtests.outcomes import Load
from loadtests.report import machine, plot


def load(offered: float) -> Load:
    return Load(
        offered=offered,
        answered=offered,
        requests=10,
        statuses={200: 10},
        p50_s=offered,
        p95_s=2 * offered,
        p99_s=3 * offered,
        latest_start_s=0.0,
        stages_s={"queue": offered / 2, "denoise": offered / 2},
    )


def test_latency_is_drawn_against_load(tmp_path: Path) -> None:
    plot([load(1.0), load(2.0)], tmp_path / "load.png")
    with Image.open(tmp_path / "load.png") as image:
        assert image.format == "PNG"
        assert len(image.getcolors(1 << 20) or []) > 10


def test_the_machine_is_named() -> None:
    assert set(machine()) == {"cpu", "cores", "python", "commit"}
