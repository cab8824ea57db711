"""Which rows of a tensor belong to whom: what the operations know of samples, text and images.

A step's rows lie in one tensor: the text rows of all samples, then their image rows. So each stream is a
slice, each sample has one span in each, and nothing is ever padded, gathered or put back.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from kernels.float8 import Quantized

TILE_ROWS = 128
"""Rows of queries that one program of the attention kernel takes: 128 on every architecture (two warpgroups
of 64 on Hopper); 256 + 4096 rows, a picture of 1024x1024 with its text, have no remainder."""


AnyRows = TypeVar("AnyRows", Tensor, Quantized, Tensor | Quantized)


class Span(NamedTuple):
    """Consecutive rows."""

    start: int
    rows: int

    @property
    def stop(self) -> int:
        return self.start + self.rows

    def of(self, x: AnyRows) -> AnyRows:
        """Return these rows of `x` as a view."""
        return x[self.start : self.stop]


def spans(lengths: Sequence[int], start: int = 0) -> tuple[Span, ...]:
    """Return the spans of the given lengths one after another."""
    starts = accumulate(lengths, initial=start)
    return tuple(Span(first, rows) for first, rows in zip(starts, lengths, strict=False))


@dataclass(frozen=True, slots=True)
class Owners:
    """The owner of each row: which of the modulation vectors [owners, width] it looks up.

    `spans` has the rows of each owner in order; `by_row` [rows], int32, is the same for a kernel.
    """

    spans: tuple[Span, ...]
    by_row: Tensor

    @classmethod
    def build(cls, owned: Sequence[Span], device: torch.device) -> Self:
        """Of spans by owner; together they cover all rows once."""
        by_row = torch.full((sum(span.rows for span in owned),), -1, dtype=torch.int32)
        for owner, span in enumerate(owned):
            span.of(by_row).fill_(owner)
        if (by_row < 0).any():
            raise ValueError(f"{owned} do not cover {len(by_row)} rows once")
        return cls(tuple(owned), by_row.to(device))


@dataclass(frozen=True, slots=True)
class Sequences:
    """Which rows attend to each other: those of each sample, its text and its image.

    `tiles` [tiles, 6], int32, is the work of the attention kernel: first query row, query rows, and the two
    spans of keys. The longest sequences come first, so that the last programs to finish are short.
    """

    spans: tuple[tuple[Span, Span], ...]
    tiles: Tensor

    @classmethod
    def build(
        cls, sequences: Sequence[tuple[Span, Span]], device: torch.device, *, tile_rows: int = TILE_ROWS
    ) -> Self:
        longest_first = sorted(sequences, key=lambda pair: -(pair[0].rows + pair[1].rows))
        tiles = [
            (tile.start, tile.rows, *txt, *img)
            for txt, img in longest_first
            for span in (img, txt)
            for tile in _tiles(span, tile_rows)
        ]
        return cls(tuple(sequences), torch.tensor(tiles, dtype=torch.int32).view(-1, 6).to(device))


def _tiles(span: Span, rows: int) -> Iterator[Span]:
    for start in range(span.start, span.stop, rows):
        yield Span(start, min(rows, span.stop - start))
