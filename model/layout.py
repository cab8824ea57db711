"""Which rows belong to which sample, where a row sits in its picture, and which rows a product may share.

The transformer sees rows only: the text rows of all samples in one tensor, the image rows in another, and
for attention both of each sample joined, text first. A `Layout` is the map between the three. It depends on
sizes alone, so the pipeline keeps the layouts of recent steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

import torch
from torch import Tensor

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
    """Consecutive rows of each sample in one tensor.

    `lengths` are the rows of each sample, `products` those of each matrix product; `cos` and `sin`
    [rows, head_dim / 2] are the rotations of the rows, float32.
    """

    lengths: tuple[int, ...]
    products: tuple[int, ...]
    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """The rows of one step: image rows, text rows, and both joined per sample with the text first."""

    img: Stream
    txt: Stream
    joint: Stream
    joint_order: Tensor  # row of cat([txt, img]) that stands at each joint row
    txt_rows: Tensor  # joint row of each text row
    img_rows: Tensor  # joint row of each image row

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
        tables = [rope_table(shape, config) for shape in shapes]
        is_txt = torch.cat([torch.arange(len(t)) < s.txt_rows for t, s in zip(tables, shapes, strict=True)])
        txt_rows, img_rows = is_txt.nonzero().flatten(), (~is_txt).nonzero().flatten()
        angles = torch.cat(tables)

        def stream(lengths: Sequence[int], rows: Tensor) -> Stream:
            return Stream(
                lengths=tuple(lengths),
                products=tuple(lengths) if numerics is Numerics.EXACT else (sum(lengths),),
                cos=angles[rows].cos().float().to(device),
                sin=angles[rows].sin().float().to(device),
            )

        return cls(
            img=stream([shape.img_rows for shape in shapes], img_rows),
            txt=stream([shape.txt_rows for shape in shapes], txt_rows),
            joint=stream([len(table) for table in tables], torch.arange(len(angles))),
            joint_order=torch.argsort(torch.cat([txt_rows, img_rows])).to(device),
            txt_rows=txt_rows.to(device),
            img_rows=img_rows.to(device),
        )

    def join(self, txt: Tensor, img: Tensor) -> Tensor:
        """Put text and image rows [rows, ...] into the joint order."""
        both = torch.cat([txt, img])
        return both if len(self.joint.lengths) == 1 else both[self.joint_order]

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """Take the text and the image rows out of the joint order."""
        if len(self.joint.lengths) == 1:
            return joint[: self.txt.lengths[0]], joint[self.txt.lengths[0] :]
        return joint[self.txt_rows], joint[self.img_rows]


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
