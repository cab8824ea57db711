"""What a step costs on one device: predicted from a table of a few numbers, fitted to timed steps.

Pure: no torch, no clock. The worker measures and keeps the table (`server.worker.calibrate`), the batcher and
admission ask it. Seconds are device-seconds throughout.

A denoising step of samples with `rows` transformer rows each (text and image, per pass) takes

    max(floor, fixed + row * sum(rows) + pair * sum(rows ** 2))

The host needs `floor` to launch its kernels, beside the device; `fixed` is paid once per step (launches that
nothing hides, weights that are read whatever the rows); linear layers cost `row`, attention costs `pair`.
"""

from collections.abc import Sequence
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
# What encoding a source takes of a decode, as long as none was timed: 0.39 to 0.48 on the embedded model.
SOURCE_OF_DECODE: Final = 0.5


class StepKind(StrEnum):
    """What a device does next. DROP does nothing on it: these pictures cannot be finished in time."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"
    DROP = "drop"


class Shape(NamedTuple):
    """What the cost of a picture depends on.

    `txt_rows` are those of one pass; guidance takes two passes. `has_source` means that a picture to start
    from is encoded with the prompt.
    """

    width: int
    height: int
    txt_rows: int
    passes: int = 1
    has_source: bool = False

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
    says that its rows take. `source_s` is the part of `text_s` for the picture that it starts from.
    """

    shape: Shape
    steps: int
    text_s: float
    source_s: float
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

    `mixing` is what a step of several sizes takes compared with its rows in steps of one size. Sources cost
    nothing here where none was timed: then `Costs` goes by the decodes. `ratios` are
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
    source_fixed_s: Seconds = 0.0
    source_pixel_s: Seconds = 0.0
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
        """Seconds to encode the prompts of `shapes` together, and one by one the pictures they start from."""
        rows = sum(shape.passes * shape.txt_rows for shape in shapes)
        text_s = self.table.text_fixed_s + self.table.text_row_s * rows
        text_s *= self._ratios.get(StepKind.ENCODE.value, 1.0)
        return text_s + sum(self.source_s(shape) for shape in shapes)

    def source_s(self, shape: Shape) -> float:
        """Seconds to encode the picture that one starts from, if there is one."""
        if not shape.has_source:
            return 0.0
        table, pixels = self.table, shape.width * shape.height
        seconds = table.source_fixed_s + table.source_pixel_s * pixels
        if not seconds:
            seconds = SOURCE_OF_DECODE * (table.decode_fixed_s + table.decode_pixel_s * pixels)
        return seconds * self._ratios.get(_name(StepKind.ENCODE, shape), 1.0)

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
            source_s=self.source_s(shape),
            rows_s=rows_s,
            step_s=rows_s * self._ratio(StepKind.DENOISE, (shape,)),
            alone_step_s=self.step_s((shape,)),
            decode_s=self.decode_s(shape),
        )

    def parts(self, kind: StepKind, shapes: Sequence[Shape]) -> list[float]:
        """Return each picture's part in a step, together 1: that of its tokens, or of its source's encoding.

        Without this whoever brings only a text would pay for half of the source beside it.
        """
        weights = [float(shape.passes * image_tokens(shape.width, shape.height)) for shape in shapes]
        if kind is StepKind.ENCODE and any(shape.has_source for shape in shapes):
            weights = [self.encode_s((shape,)) for shape in shapes]
        total = sum(weights)
        return [weight / total if total else 1 / len(weights) for weight in weights]

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
        """Follow a live timing: the ratio of each size moves by the size's part in the step.

        In an encoding with sources these take most of the time: the ratio of texts stays what it is.
        """
        predicted_s = self._predict_s(timed)
        if predicted_s <= 0 or timed.seconds <= 0:
            return
        surprise = min(MOST_SURPRISE, max(1 / MOST_SURPRISE, timed.seconds / predicted_s))
        sources = [shape for shape in timed.shapes if shape.has_source and timed.kind is StepKind.ENCODE]
        shapes = sources or timed.shapes
        total = sum(shape.rows for shape in shapes)
        for shape in shapes:
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


def _name(kind: StepKind, shape: Shape) -> str:
    """Return what a ratio goes by; texts all go by one."""
    if kind is StepKind.ENCODE and not shape.has_source:
        return kind.value
    return f"{kind.value} {shape.width}x{shape.height}"
