"""What do steps cost on this device? Timed once, fitted by `fitting`, and kept for the next start.

The worker calls `calibrated` when its model is loaded, and `keep` when it ends, with what it has learned.
"""

import hashlib
import itertools
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import structlog
import torch

from model.conditioning import Prompt
from model.info import PipelineInfo
from model.pipeline import Pipeline
from model.sampling import Sample
from model.source import Source
from server import __version__
from server.costs import CostKey, Costs, CostTable, KeptTable, Shape, StepKind, Timed
from server.worker.fitting import fit

SIDES: Final = (256, 512, 768, 1024)
COUNTS: Final = (2, 4, 8)
NEEDED_POINTS: Final = 4  # of `points`: without them there is nothing to fit
REPEATS: Final = 3  # after one that is not timed: what is new to the device is compiled and allocated there
STEPS: Final = 8  # of a sample: enough for all repeats
MOST_OF_BUDGET: Final = 0.2  # what one point may take of it

log = structlog.get_logger(__name__)

Point = tuple[StepKind, tuple[Shape, ...]]


def calibrated(
    pipeline: Pipeline, *, kernels: str, data_dir: Path, budget_s: float
) -> tuple[CostKey, CostTable]:
    """Return the table of this device: the one that was kept for it, or one that is measured now.

    Measuring takes about `budget_s` seconds; with none, only one and two pictures of the default size are
    timed, and the table is not kept.
    """
    key = cost_key(pipeline.info, kernels=kernels)
    path = kept_at(data_dir, key)
    table = load(path, key) if budget_s > 0 else None
    if table is not None:
        _warm_up(pipeline)
        log.info("costs_loaded", path=str(path))
        return key, table
    began_s = time.monotonic()
    table = measure(pipeline, budget_s=budget_s)
    log.info(
        "costs_measured",
        seconds=round(time.monotonic() - began_s, 2),
        pictures_per_step=paying_counts(table, pipeline.info),
    )
    if budget_s > 0:
        keep(table, key, data_dir)
    return key, table


def measure(
    pipeline: Pipeline, *, budget_s: float, clock: Callable[[], float] = time.perf_counter
) -> CostTable:
    """Time points until the budget is used up, those that tell most first, and fit a table to them."""
    stopwatch = Stopwatch(pipeline, clock, budget_s=budget_s, ends_s=clock() + budget_s)
    timed: list[Timed] = []
    for number, (kind, shapes) in enumerate(points(pipeline.info)):
        needed = number < NEEDED_POINTS
        if not needed and not stopwatch.has_time_for(expect_s(timed, kind, shapes)):
            continue
        try:
            timed.append(Timed(kind, shapes, stopwatch.time(kind, shapes)))
        except torch.OutOfMemoryError:
            if len(shapes) == 1 and needed:
                raise
            log.info("calibration_out_of_memory", kind=kind.value, rows=sum(shape.rows for shape in shapes))
    pipeline.conditioning.clear()
    return fit(timed)


def points(info: PipelineInfo) -> Iterator[Point]:
    """Yield what to time: one and two pictures as the model prefers them, which is always done; sources to
    start from, other sizes, other counts, and mixtures."""
    default = Shape(info.default_width, info.default_height, info.default_sequence_length)
    squares = [Shape(side, side, info.default_sequence_length) for side in SIDES]
    for kind in (StepKind.ENCODE, StepKind.DENOISE, StepKind.DECODE):
        yield kind, (default,)
    yield StepKind.DENOISE, (default, default)
    yield StepKind.ENCODE, (default._replace(has_source=True),)
    for shape in squares:
        if shape != default:
            yield StepKind.DENOISE, (shape,)
            yield StepKind.DECODE, (shape,)
            yield StepKind.ENCODE, (shape._replace(has_source=True),)
    for count in COUNTS:
        yield StepKind.ENCODE, (default,) * count
        for shape in squares:
            if (shape, count) != (default, 2):
                yield StepKind.DENOISE, (shape,) * count
        if count == COUNTS[0]:
            for small, large in itertools.pairwise(squares):
                yield StepKind.DENOISE, (small, large)


def expect_s(timed: list[Timed], kind: StepKind, shapes: tuple[Shape, ...]) -> float:
    """Guess the seconds of a point from the one of its kind that is nearest; a source's from a decode."""
    pixels = _pixels(shapes)
    alike = StepKind.DECODE if shapes[0].has_source else kind
    known = (each for each in timed if each.kind is alike)
    nearest = min(known, key=lambda each: abs(_pixels(each.shapes) - pixels))
    return nearest.seconds * pixels / _pixels(nearest.shapes)


@dataclass(slots=True)
class Stopwatch:
    """Times points on a pipeline, which is left as it was."""

    pipeline: Pipeline
    clock: Callable[[], float]
    budget_s: float
    ends_s: float

    def has_time_for(self, expected_s: float) -> bool:
        needed_s = (1 + REPEATS) * expected_s
        return needed_s <= MOST_OF_BUDGET * self.budget_s and self.clock() + needed_s <= self.ends_s

    def time(self, kind: StepKind, shapes: tuple[Shape, ...]) -> float:
        """Return the seconds of the fastest of some repeats: the others waited for something else."""
        run = self._runner(kind, shapes)
        fastest_s = float("inf")
        for repeat in range(1 + (REPEATS if self.budget_s else 1)):
            began_s = self.clock()
            run()
            self.pipeline.synchronize()
            if repeat:
                fastest_s = min(fastest_s, self.clock() - began_s)
        return fastest_s

    def _runner(self, kind: StepKind, shapes: tuple[Shape, ...]) -> Callable[[], object]:
        match kind:
            case StepKind.ENCODE if shapes[0].has_source:
                return lambda: self._encode_sources(shapes)
            case StepKind.ENCODE:
                return lambda: self._encode(shapes)
            case StepKind.DENOISE:
                samples = [self._sample(shape) for shape in shapes]
                return lambda: self.pipeline.denoise_step(samples)
            case StepKind.DECODE:
                samples = [self._sample(shape) for shape in shapes]
                return lambda: self.pipeline.decode(samples)
            case StepKind.DROP:
                raise AssertionError("dropping takes no time")

    def _encode(self, shapes: tuple[Shape, ...]) -> None:
        self.pipeline.conditioning.clear()
        self.pipeline.encode([Prompt(f"picture {n}", shape.txt_rows) for n, shape in enumerate(shapes)])

    def _encode_sources(self, shapes: tuple[Shape, ...]) -> None:
        self.pipeline.conditioning.clear()
        for shape in shapes:
            self._sample(shape)

    def _sample(self, shape: Shape) -> Sample:
        (conditioning,) = self.pipeline.encode([Prompt("", shape.txt_rows)])
        return self.pipeline.start(
            conditioning=conditioning,
            negative=None,
            width=shape.width,
            height=shape.height,
            steps=STEPS,
            seed=0,
            guidance_scale=0.0,
            source=_grey(shape.width, shape.height) if shape.has_source else None,
        )


def _grey(width: int, height: int) -> Source:
    """Return a picture that has to be encoded, whatever the steps."""
    pixels, nothing = np.full((height, width, 3), 128, np.uint8), np.zeros((height, width), np.uint8)
    return Source(pixels, strength=1.0, mask=nothing)


def _warm_up(pipeline: Pipeline) -> None:
    """Make a picture, so that the first client does not wait for what a device does once."""
    info = pipeline.info
    pipeline.generate(
        [""],
        seeds=[0],
        width=info.default_width,
        height=info.default_height,
        steps=info.default_steps,
        max_sequence_length=info.default_sequence_length,
        source=_grey(info.default_width, info.default_height),
    )
    pipeline.conditioning.clear()


def cost_key(info: PipelineInfo, *, kernels: str) -> CostKey:
    """Say what a table of this process is good for."""
    device = torch.device(info.device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    return CostKey(
        device=name,
        digest=info.digest,
        dtype=info.dtype,
        numerics=info.numerics,
        kernels=kernels,
        quantize=info.quantize,
        version=__version__,
    )


def kept_at(data_dir: Path, key: CostKey) -> Path:
    return data_dir / "costs" / f"{hashlib.sha256(msgspec.json.encode(key)).hexdigest()[:16]}.json"


def load(path: Path, key: CostKey) -> CostTable | None:
    """Return the table at `path`; None if there is none for `key` that can be read."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=KeptTable)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("costs_not_loaded", path=str(path), reason=str(error))
        return None
    return kept.table if kept.key == key else None


def keep(table: CostTable, key: CostKey, data_dir: Path) -> None:
    """Write a table for the next start; where that is not possible, the next start measures again."""
    path = kept_at(data_dir, key)
    new = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new.write_bytes(msgspec.json.format(msgspec.json.encode(KeptTable(key=key, table=table))))
        new.replace(path)
    except OSError as error:
        log.warning("costs_not_kept", path=str(path), reason=str(error))


def paying_counts(table: CostTable, info: PipelineInfo) -> dict[str, int]:
    """Return for some sizes how many pictures share a step before a larger one stops paying."""
    costs = Costs.of(table)
    shapes = [Shape(side, side, info.default_sequence_length) for side in SIDES]
    return {f"{shape.width}x{shape.height}": costs.paying_count(shape) for shape in shapes}


def _pixels(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.width * shape.height for shape in shapes)
