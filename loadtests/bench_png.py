"""How fast a picture becomes a PNG: our encoder beside everything else that installs as a wheel.

`python -m loadtests.bench_png` prints a table and appends its rows to loadtests/results/png.csv. Encoders
that are not installed (cv2, imagecodecs, zlib_ng, fpng_py) are left out and named.
"""

import argparse
import csv
import io
import os
import platform
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from PIL import Image

from server.worker.png import encode_png

Pixels = npt.NDArray[np.uint8]
Encode = Callable[[Pixels], bytes]

RESULTS = Path(__file__).parent / "results" / "png.csv"
SIDE = 1024
ROUNDS = 9


def main() -> None:
    """Time every encoder on every picture, interleaved, so that all share the machine's moods."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--core", type=int, default=0, help="pin to this core; -1 leaves it to the system")
    options = parser.parse_args()
    if options.core >= 0:
        os.sched_setaffinity(0, {options.core})
    encoders = dict(candidates())
    rows = []
    for picture, pixels in pictures().items():
        times: dict[str, list[float]] = {name: [] for name in encoders}
        sizes = {name: len(encode(pixels)) for name, encode in encoders.items()}
        for _ in range(ROUNDS):
            for name, encode in encoders.items():
                began_s = time.perf_counter()
                encode(pixels)
                times[name].append(time.perf_counter() - began_s)
        for name in encoders:
            rows.append([picture, name, f"{statistics.median(times[name]) * 1e3:.1f}", sizes[name]])
    report(rows)


def candidates() -> Iterator[tuple[str, Encode]]:
    """Yield the encoders that are installed, ours first."""
    yield "ours: up filter, isal 1", lambda pixels: encode_png(pixels, {})
    yield "up filter, isal 0", lambda pixels: isal_zlib.compress(up_filtered(pixels), 0)
    yield "up filter, isal 3", lambda pixels: isal_zlib.compress(up_filtered(pixels), 3)
    yield "no filter, isal 1", lambda pixels: isal_zlib.compress(pixels.data, 1)
    yield "up filter, zlib 1", lambda pixels: zlib.compress(up_filtered(pixels), 1)
    yield "pillow, default", lambda pixels: pillow(pixels)
    yield "pillow, level 1", lambda pixels: pillow(pixels, compress_level=1)
    for module, make in (
        ("cv2", opencv),
        ("imagecodecs", imagecodecs),
        ("zlib_ng", zlib_ng),
        ("fpng_py", fpng),
    ):
        try:
            import_module(module)
        except ImportError:
            sys.stderr.write(f"not installed, left out: {module}\n")
            continue
        yield make()


def up_filtered(pixels: Pixels) -> bytes:
    rows = pixels.reshape(len(pixels), -1)
    filtered = np.full((rows.shape[0], rows.shape[1] + 1), 2, np.uint8)
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered.tobytes()


def pillow(pixels: Pixels, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def opencv() -> tuple[str, Encode]:
    cv2 = import_module("cv2")
    return "opencv, level 1", lambda pixels: bytes(
        cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    )


def imagecodecs() -> tuple[str, Encode]:
    module = import_module("imagecodecs")
    return "imagecodecs, level 1", lambda pixels: bytes(module.png_encode(pixels, level=1))


def zlib_ng() -> tuple[str, Encode]:
    module = import_module("zlib_ng.zlib_ng")
    return "up filter, zlib-ng 1", lambda pixels: bytes(module.compress(up_filtered(pixels), 1))


def fpng() -> tuple[str, Encode]:
    module = import_module("fpng_py")
    height, width = SIDE, SIDE
    return "fpng", lambda pixels: bytes(module.fpng_encode_image_to_memory(pixels.tobytes(), width, height))


def pictures() -> dict[str, Pixels]:
    """Return a photograph-like picture (smooth, with grain), a flat drawing, and pure noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (SIDE // 16, SIDE // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
    photo = np.clip(smooth + rng.normal(0, 2, smooth.shape), 0, 255).astype(np.uint8)
    drawing = np.full((SIDE, SIDE, 3), (40, 90, 200), np.uint8)
    drawing[200:700, 300:800] = (220, 30, 30)
    drawing[600:, 500:] = (250, 240, 90)
    noise = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return {"photo": photo, "drawing": drawing, "noise": noise}


def report(rows: list[list[object]]) -> None:
    """Print the rows, and keep them with machine, versions and commit."""
    for picture, name, milliseconds, size in rows:
        sys.stdout.write(f"{picture:8} {name:26} {milliseconds:>7} ms {size:>9} bytes\n")
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    where = [
        time.strftime("%Y-%m-%d"),
        cpu_name(),
        platform.python_version(),
        versions(),
        commit,
        SIDE,
        ROUNDS,
    ]
    new = not RESULTS.exists()
    with RESULTS.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(
                [
                    "date",
                    "cpu",
                    "python",
                    "versions",
                    "commit",
                    "side",
                    "rounds",
                    "picture",
                    "encoder",
                    "median_ms",
                    "bytes",
                ]
            )
        writer.writerows([*where, *row] for row in rows)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown")


def versions() -> str:
    found = []
    for name in ("isal", "pillow", "numpy", "opencv-python-headless", "imagecodecs", "zlib-ng", "fpng-py"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


if __name__ == "__main__":
    main()
