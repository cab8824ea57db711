"""What a step costs on one device: predicted from a table of a few numbers, fitted to timed steps.

Pure: no torch, no clock. The worker measures and keeps the table (`server.worker.calibrate`), the batcher and
admission ask it. Seconds are device-seconds throughout.

A denoising step of samples with `rows` transformer rows each (text and image, per pass) takes

    max(floor, fixed + row * sum(rows) + pair * sum(rows ** 2))

The host needs `floor` to launch its kernels, beside the device; `fixed` is paid once per step (launches that
nothing hides, weights that are read whatever the rows); linear layers cost `row`, attention costs `pair`.
"""

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Final, NamedTuple

import msgspec

from server.generation import image_tokens

FULL_OVERHEAD: Final = 0.05  # a step is full when no more of its time than this is paid whatever its rows
FOLLOW: Final = 0.1  # weight of the newest timing in a ratio
MOST_SURPRISE: Final = 2.0  # one timing counts as at most this much slower or faster than predicted
MOST_RATIO: Final = 16.0
PAYING_LIMIT: Final = 64  # nobody waits for steps of more pictures than this


class StepKind(StrEnum):
    """What a device does next. DROP does nothing on it: these pictures cannot be finished in time."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"
    DROP = "drop"


class Shape(NamedTuple):
    """What the cost of a picture depends on. `txt_rows` are those of one pass; guidance takes two passes."""

    width: int
    height: int
    txt_rows: int
    passes: int = 1

    @property
    def pass_rows(self) -> int:
        return self.txt_rows + image_tokens(self.width, self.height)

    @property
    def rows(self) -> int:
        """Transformer rows in one step."""
        return self.passes * self.pass_rows


class Timed(NamedTuple):
    """One measured step."""

    kind: StepKind
    shapes: tuple[Shape, ...]
    seconds: float


class Bill(NamedTuple):
    """Device-seconds of one picture by stage.

    A step of it alone takes `alone_step_s`, its part of a full step is `step_s`; `rows_s` is what the formula
    says that its rows take.
    """

    shape: Shape
    steps: int
    text_s: float
    rows_s: float
    step_s: float
    alone_step_s: float
    decode_s: float

    @property
    def total_s(self) -> float:
        """What the picture takes away from the others."""
        return self.text_s + self.steps * self.step_s + self.decode_s

    @property
    def alone_s(self) -> float:
        """How long the picture takes where nothing else runs."""
        return self.text_s + self.steps * self.alone_step_s + self.decode_s

    @property
    def shared_s(self) -> float:
        """What a device saves of the picture when others share its steps."""
        return self.alone_s - self.total_s


class CostKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a table was measured on; it is good for exactly that."""

    device: str
    digest: str
    dtype: str
    numerics: str
    kernels: str
    quantize: str
    version: str


Seconds = Annotated[float, msgspec.Meta(ge=0)]


class CostTable(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers, as they are kept in a file and told to the front end.

    `mixing` is what a step of several sizes takes compared with its rows in steps of one size. `ratios` are
    what live timings of a kind and size (`"denoise 1024x768"`) take compared with the formula. A step takes
    at most `max_rows` rows, if the device once ran out of memory.
    """

    step_floor_s: Seconds = 0.0
    step_fixed_s: Seconds = 0.0
    row_s: Seconds = 0.0
    pair_s: Seconds = 0.0
    mixing: Annotated[float, msgspec.Meta(ge=1)] = 1.0
    text_fixed_s: Seconds = 0.0
    text_row_s: Seconds = 0.0
    decode_fixed_s: Seconds = 0.0
    decode_pixel_s: Seconds = 0.0
    ratios: dict[str, Annotated[float, msgspec.Meta(gt=0)]] = {}
    max_rows: Annotated[int, msgspec.Meta(ge=1)] | None = None


class KeptTable(msgspec.Struct, frozen=True, kw_only=True):
    """The file in which a table outlives its server."""

    key: CostKey
    table: CostTable


@dataclass(slots=True)
class Costs:
    """Predicts from a table, and follows what steps really take."""

    table: CostTable
    max_rows: int | None = None
    _ratios: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, table: CostTable) -> "Costs":
        return cls(table, max_rows=table.max_rows, _ratios=dict(table.ratios))

    def refined(self) -> CostTable:
        """Return the table with what was learned since."""
        return msgspec.structs.replace(self.table, ratios=dict(self._ratios), max_rows=self.max_rows)

    def encode_s(self, shapes: Sequence[Shape]) -> float:
        """Seconds to encode the prompts of `shapes` together."""
        rows = sum(shape.passes * shape.txt_rows for shape in shapes)
        return (self.table.text_fixed_s + self.table.text_row_s * rows) * self._ratio(StepKind.ENCODE, shapes)

    def step_s(self, shapes: Sequence[Shape]) -> float:
        """Seconds of a denoising step of `shapes`."""
        rows_s = sum(self.rows_s(shape) for shape in shapes)
        seconds = self.formula_s(rows_s, sizes=len({shape[:2] for shape in shapes}))
        return seconds * self._ratio(StepKind.DENOISE, shapes)

    def formula_s(self, rows_s: float, *, sizes: int) -> float:
        """Seconds of a denoising step by the formula alone, from the sum of its `rows_s`."""
        seconds = max(self.table.step_floor_s, self.table.step_fixed_s + rows_s)
        return seconds * self.table.mixing if sizes > 1 else seconds

    def efficiency(self, shapes: Sequence[Shape]) -> float:
        """Return the part of a denoising step's predicted time that its rows take, 0 to 1.

        The rest is paid whatever the rows are: launches, weights that are read, and for mixing sizes. A full
        step of one size is near 1, a picture alone on a fast device far below.
        """
        rows_s = sum(self.rows_s(shape) for shape in shapes)
        seconds = self.formula_s(rows_s, sizes=len({shape[:2] for shape in shapes}))
        return rows_s / seconds if seconds else 1.0

    def decode_s(self, shape: Shape) -> float:
        """Seconds to decode one picture."""
        pixels = shape.width * shape.height
        seconds = self.table.decode_fixed_s + self.table.decode_pixel_s * pixels
        return seconds * self._ratio(StepKind.DECODE, (shape,))

    def rows_s(self, shape: Shape) -> float:
        """Seconds that a picture adds to a step that is full, by the formula alone."""
        rows = shape.pass_rows
        return shape.passes * rows * (self.table.row_s + self.table.pair_s * rows)

    def bill(self, shape: Shape, *, steps: int) -> Bill:
        """Return what a picture of `steps` steps will cost."""
        rows_s = self.rows_s(shape)
        return Bill(
            shape=shape,
            steps=steps,
            text_s=self.encode_s((shape,)),
            rows_s=rows_s,
            step_s=rows_s * self._ratio(StepKind.DENOISE, (shape,)),
            alone_step_s=self.step_s((shape,)),
            decode_s=self.decode_s(shape),
        )

    @property
    def full_s(self) -> float:
        """Sum of `rows_s` from which a step is full: growing it further hardly pays.

        With `overhead` the part of a step that is paid whatever its rows, a step that is larger by a small
        share makes more pictures a second by `overhead` times that share.
        """
        table = self.table
        return (1 - FULL_OVERHEAD) * max(table.step_floor_s, table.step_fixed_s / FULL_OVERHEAD)

    def paying_count(self, shape: Shape) -> int:
        """How many pictures of one size share a step before a larger step stops paying."""
        each_s = self.rows_s(shape)
        count = 1
        while count * each_s < self.full_s and self.fits((count + 1) * shape.rows) and count < PAYING_LIMIT:
            count += 1
        return count

    def fits(self, rows: int) -> bool:
        return self.max_rows is None or rows <= self.max_rows

    def limit(self, rows: int) -> None:
        """Never plan a step of more than `rows` rows again: a larger one ran out of memory."""
        self.max_rows = rows if self.max_rows is None else min(rows, self.max_rows)

    def refine(self, timed: Timed) -> None:
        """Follow a live timing: the ratio of each size moves by the size's part in the step."""
        predicted_s = self._predict_s(timed)
        if predicted_s <= 0 or timed.seconds <= 0:
            return
        surprise = min(MOST_SURPRISE, max(1 / MOST_SURPRISE, timed.seconds / predicted_s))
        total = sum(shape.rows for shape in timed.shapes)
        for shape in timed.shapes:
            name = _name(timed.kind, shape)
            ratio = self._ratios.get(name, 1.0) * surprise ** (FOLLOW * shape.rows / total)
            self._ratios[name] = min(MOST_RATIO, max(1 / MOST_RATIO, ratio))

    def _predict_s(self, timed: Timed) -> float:
        match timed.kind:
            case StepKind.ENCODE:
                return self.encode_s(timed.shapes)
            case StepKind.DENOISE:
                return self.step_s(timed.shapes)
            case StepKind.DECODE:
                return sum(self.decode_s(shape) for shape in timed.shapes)
            case StepKind.DROP:
                return 0.0

    def _ratio(self, kind: StepKind, shapes: Sequence[Shape]) -> float:
        """The ratios of the sizes in a step, each by its part in the rows."""
        if not self._ratios:
            return 1.0
        total = sum(shape.rows for shape in shapes)
        return sum(self._ratios.get(_name(kind, shape), 1.0) * shape.rows for shape in shapes) / total


def fit(timed: Iterable[Timed]) -> CostTable:
    """Return the table whose predictions are nearest to the timings, by the squares of relative errors.

    Raises `ValueError` if one of the three kinds was never timed.
    """
    by_kind: dict[StepKind, list[Timed]] = {
        kind: [] for kind in (StepKind.ENCODE, StepKind.DENOISE, StepKind.DECODE)
    }
    for each in timed:
        by_kind[each.kind].append(each)
    if missing := [kind.value for kind, found in by_kind.items() if not found]:
        raise ValueError(f"nothing was timed of {', '.join(missing)}")
    text = _least_squares([_text_terms(each) for each in by_kind[StepKind.ENCODE]])
    decode = _least_squares([_decode_terms(each) for each in by_kind[StepKind.DECODE]])
    floor_s, step = _fit_step([each for each in by_kind[StepKind.DENOISE] if len(_sizes(each)) == 1])
    return CostTable(
        row_s=step[0],
        pair_s=step[1],
        step_fixed_s=step[2],
        step_floor_s=floor_s,
        mixing=_mixing(by_kind[StepKind.DENOISE]),
        text_row_s=text[0],
        text_fixed_s=text[1],
        decode_pixel_s=decode[0],
        decode_fixed_s=decode[1],
    )


def _mixing(timed: Sequence[Timed]) -> float:
    """Return what mixed steps take compared with steps of as many pictures of one of their sizes, on average.

    No formula is in between, so its errors do not look like a cost of mixing.
    """
    alike = {(each.shapes[0], len(each.shapes)): each.seconds for each in timed if len(_sizes(each)) == 1}
    ratios = []
    for each in timed:
        parts = [alike.get((shape, len(each.shapes))) for shape in each.shapes]
        known = [part for part in parts if part is not None]
        if len(_sizes(each)) > 1 and len(known) == len(parts):
            ratios.append(each.seconds / statistics.fmean(known))
    return max(1.0, statistics.median(ratios)) if ratios else 1.0


Row = tuple[tuple[float, ...], float]  # the terms of the formula for one timing, and its seconds


def _fit_step(timed: Sequence[Timed]) -> tuple[float, tuple[float, ...]]:
    """Return the floor and (row, pair, fixed): whichever split into floor and slope fits best."""
    rows = sorted((_step_terms(each) for each in timed), key=lambda row: row[1])
    best: tuple[float, float, tuple[float, ...]] | None = None
    for on_floor in range(max(1, len(rows) - 2)):
        floor_s = sum(seconds for _, seconds in rows[:on_floor]) / on_floor if on_floor else 0.0
        solution = _least_squares(rows[on_floor:])
        error = sum((max(floor_s, _dot(terms, solution)) / seconds - 1) ** 2 for terms, seconds in rows)
        if best is None or error < best[0] * 0.9 - 1e-12:  # a floor has to earn its place
            best = error, floor_s, solution
    assert best is not None, "the range above is never empty"
    return best[1:]


def _least_squares(rows: Sequence[Row]) -> tuple[float, ...]:
    """Minimise the squared relative errors with no coefficient below zero.

    With so few coefficients every choice of those that are not zero can be tried. Where several fit as well,
    as one timing allows, it is the slope that stays.
    """
    scaled = [tuple(term / seconds for term in terms) for terms, seconds in rows]
    width = len(scaled[0])
    best: tuple[float, tuple[float, ...]] | None = None
    for count in range(1, width + 1):
        for columns in itertools.combinations(range(width), count):
            found = _solve([tuple(terms[column] for column in columns) for terms in scaled])
            if found is None or min(found) < 0:
                continue
            solution = [0.0] * width
            for column, value in zip(columns, found, strict=True):
                solution[column] = value
            error = sum((_dot(terms, solution) - 1) ** 2 for terms in scaled)
            if best is None or error < best[0] - 1e-12:
                best = error, tuple(solution)
    assert best is not None, "one positive column always has a positive solution"
    return best[1]


def _solve(terms: Sequence[tuple[float, ...]]) -> tuple[float, ...] | None:
    """Solve the normal equations of `terms @ x = 1` by Gauss-Jordan; None where they have no one solution."""
    width = len(terms[0])
    norms = [sum(row[column] ** 2 for row in terms) ** 0.5 for column in range(width)]
    if min(norms) == 0:
        return None
    unit = [[value / norm for value, norm in zip(row, norms, strict=True)] for row in terms]
    matrix = [
        [*(sum(row[i] * row[j] for row in unit) for j in range(width)), sum(row[i] for row in unit)]
        for i in range(width)
    ]
    for column in range(width):
        pivot = max(range(column, width), key=lambda row: abs(matrix[row][column]))
        if abs(matrix[pivot][column]) < 1e-9:
            return None
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        matrix[column] = [value / matrix[column][column] for value in matrix[column]]
        for row in range(width):
            if row != column:
                factor = matrix[row][column]
                matrix[row] = [a - factor * b for a, b in zip(matrix[row], matrix[column], strict=True)]
    return tuple(matrix[column][width] / norms[column] for column in range(width))


def _dot(terms: Sequence[float], solution: Sequence[float]) -> float:
    return sum(term * value for term, value in zip(terms, solution, strict=True))


def _step_terms(timed: Timed) -> Row:
    rows = sum(shape.rows for shape in timed.shapes)
    pairs = sum(shape.passes * shape.pass_rows**2 for shape in timed.shapes)
    return (float(rows), float(pairs), 1.0), timed.seconds


def _text_terms(timed: Timed) -> Row:
    return (float(sum(shape.passes * shape.txt_rows for shape in timed.shapes)), 1.0), timed.seconds


def _decode_terms(timed: Timed) -> Row:
    return (float(sum(shape.width * shape.height for shape in timed.shapes)), 1.0), timed.seconds


def _sizes(timed: Timed) -> set[tuple[int, int]]:
    return {(shape.width, shape.height) for shape in timed.shapes}


def _name(kind: StepKind, shape: Shape) -> str:
    return kind.value if kind is StepKind.ENCODE else f"{kind.value} {shape.width}x{shape.height}"
