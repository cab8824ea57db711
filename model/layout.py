"""Which rows belong to which sample, where a row sits in its picture, and which rows a product may share.

The transformer sees rows only: the text rows of all samples, then the image rows of all samples, in one
tensor. A `Layout` says whose they are. It depends on sizes alone, so the pipeline keeps the layouts of
recent steps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, Self

import torch
from torch import Tensor, nn

from kernels.rows import Owners, Sequences, Span, spans
from kernels.updates import Updates
from model.config import TransformerConfig


class Numerics(StrEnum):
    """EXACT: every sample has its own matrix products, so neighbours cannot change one bit of it.

    FAST: all rows of a step share each product; a sample moves within rounding with its company.
    """

    EXACT = "exact"
    FAST = "fast"


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the rows of one sample: its text rows and its grid of 16x16 pixel patches."""

    txt_rows: int
    grid_height: int
    grid_width: int

    @property
    def img_rows(self) -> int:
        return self.grid_height * self.grid_width


@dataclass(frozen=True, slots=True)
class Stream:
    """The text rows, the image rows, or both.

    `span` is where they lie, `products` are the rows of each matrix product, `cos` and `sin`
    [rows, head_dim / 2] the rotations, float32. `updates` are what adapters add to the product of a layer.
    """

    span: Span
    products: tuple[int, ...]
    cos: Tensor
    sin: Tensor
    updates: Mapping[nn.Module, Updates] = field(default_factory=dict)


StreamName = Literal["txt", "img", "joint"]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Layout:
    """The rows of one step.

    `owners` are the image rows of each sample, then the text rows of each: the order in which a double
    block's modulation has them.
    """

    shapes: tuple[Shape, ...]
    txt: Stream
    img: Stream
    joint: Stream
    owners: Owners
    sequences: Sequences

    @property
    def img_lengths(self) -> list[int]:
        """The image rows of each sample."""
        return [shape.img_rows for shape in self.shapes]

    @property
    def is_adapted(self) -> bool:
        """Whether adapters add to any product."""
        return any(stream.updates for stream in (self.txt, self.img, self.joint))

    def stream(self, name: StreamName) -> Stream:
        return {"txt": self.txt, "img": self.img, "joint": self.joint}[name]

    def own_rows(self, sample: int, stream: Stream) -> list[Span]:
        """Return where the rows of a sample lie within those of a stream."""
        first = stream.span.start
        return [
            Span(span.start - first, span.rows)
            for span in self.sequences.spans[sample]
            if first <= span.start < stream.span.stop and span.rows
        ]

    @classmethod
    def build(
        cls,
        shapes: Sequence[Shape],
        *,
        config: TransformerConfig,
        numerics: Numerics,
        device: torch.device,
    ) -> Self:
        """Lay out samples of the given shapes one after another."""
        txt_spans = spans([shape.txt_rows for shape in shapes])
        txt = Span(0, sum(span.rows for span in txt_spans))
        img_spans = spans([shape.img_rows for shape in shapes], start=txt.rows)
        img = Span(txt.rows, sum(span.rows for span in img_spans))
        tables = [(rope_table(shape, config), shape.txt_rows) for shape in shapes]
        angles = torch.cat(
            [*(table[:rows] for table, rows in tables), *(table[rows:] for table, rows in tables)]
        )

        def stream(span: Span, parts: Sequence[Span]) -> Stream:
            own = span.of(angles)
            return Stream(
                span=span,
                products=tuple(p.rows for p in parts) if numerics is Numerics.EXACT else (span.rows,),
                cos=own.cos().float().to(device),
                sin=own.sin().float().to(device),
            )

        return cls(
            shapes=tuple(shapes),
            txt=stream(txt, txt_spans),
            img=stream(img, img_spans),
            joint=stream(Span(0, txt.rows + img.rows), txt_spans + img_spans),
            owners=Owners.build(img_spans + txt_spans, device),
            sequences=Sequences.build(list(zip(txt_spans, img_spans, strict=True)), device),
        )


def rope_table(shape: Shape, config: TransformerConfig) -> Tensor:
    """Return the rotation angles [rows, head_dim / 2] of one sample, text first, in float64.

    Text rows stand at (0, 0, 0), the patch of row r and column c at (0, r, c). Axis width d has the
    frequencies `theta ** (-2 m / d)` (black-forest-labs/flux, src/flux/math.py). float64 because float32
    angles already differ by 5e-6 in cos and sin at position 255.
    """
    rows = torch.arange(shape.grid_height, dtype=torch.float64).repeat_interleave(shape.grid_width)
    columns = torch.arange(shape.grid_width, dtype=torch.float64).repeat(shape.grid_height)
    img = torch.stack([torch.zeros_like(rows), rows, columns], dim=1)  # [img_rows, 3]
    positions = torch.cat([torch.zeros(shape.txt_rows, 3, dtype=torch.float64), img])
    per_axis = [
        positions[:, axis, None]
        * config.rope_theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        for axis, width in enumerate(config.rope_axes)
    ]
    return torch.cat(per_axis, dim=1)
