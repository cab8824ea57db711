"""Low-rank changes of a linear's weight, each for some rows of a product: what adapters add to it.

The rows of a step belong to pictures with different adapters, so weights are never touched: the change is
multiplied out beside the product, for the rows that it is meant for.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from kernels.rows import Span

UPDATE_ROWS = 64
"""Rows that one program of the kernel takes; they never belong to two spans."""

KERNEL_RANKS = (16, 32, 64, 128)
"""What the kernel pads to, and is compiled for: from the 16 that a tensor core takes on each side."""

MAX_KERNEL_RANK = KERNEL_RANKS[-1]
"""What the kernel holds of an inner product in registers; a wider change is cut into several."""

_ENTRY, _TILE = 6, 4  # numbers in a line of each table

Layer = TypeVar("Layer")


@dataclass(frozen=True, slots=True)
class LowRank:
    """A change of a weight [out, in]: `scale * up @ down` is added to its rows `outputs`.

    `down` is [rank, in], `up` [outputs, rank]; both lie whole in memory, in the dtype of the rows.
    """

    down: Tensor
    up: Tensor
    outputs: Span
    scale: float = 1.0

    @property
    def rank(self) -> int:
        return len(self.down)

    def scaled(self, scale: float) -> "LowRank":
        return LowRank(self.down, self.up, self.outputs, self.scale * scale)


class Update(NamedTuple):
    """Rows of a product, and the change of the weight that holds for them."""

    rows: Span
    change: LowRank


class Tiles(NamedTuple):
    """Work of one launch of the kernel: [tiles, 4], int64, first row, rows, first entry, entries.

    `rank` is what the wider ones of its changes are padded to. It follows from the changes of a span alone,
    so that other spans do not decide how its sums are ordered.
    """

    rank: int
    table: Tensor


@dataclass(frozen=True, slots=True)
class Updates:
    """All updates of one product; those of one span come in the order in which they are added.

    `entries` [entries, 6], int64, are the changes for the kernel: addresses of `down` and `up`, rank, the
    span of outputs, and the bits of the scale, a float32. The addresses are good as long as this object is.
    """

    each: tuple[Update, ...]
    tiles: tuple[Tiles, ...]
    entries: Tensor

    @classmethod
    def build(cls, each: Sequence[Update], device: torch.device) -> Self:
        """Of the updates of one product; spans of rows are the same, or have no row in common."""
        return cls.build_all({None: each}, device)[None]

    @classmethod
    def build_all(cls, by_layer: Mapping[Layer, Sequence[Update]], device: torch.device) -> dict[Layer, Self]:
        """Of the updates of several layers; their tables go to the device together.

        Layers mostly have the same work, whose tiles are there once: for the 190 linears of a step of FLUX.1
        that takes 4 ms of a core instead of 30.
        """
        plans = {layer: _plan(each) for layer, each in by_layer.items()}
        tiles = {work: _tiles(work) for _, work in plans.values()}
        tables = [entries for entries, _ in plans.values()]
        tables += [lines for by_rank in tiles.values() for lines in by_rank.values()]
        lines = [line for table in tables for line in table]
        together = torch.tensor(lines, dtype=torch.int64).view(-1, _ENTRY).to(device)
        cut = iter(torch.split(together, [len(table) for table in tables]))
        entries = {layer: next(cut) for layer in plans}
        launches = {
            work: tuple(Tiles(rank, next(cut)[:, :_TILE]) for rank in by_rank)
            for work, by_rank in tiles.items()
        }
        return {
            layer: cls(tuple(by_layer[layer]), launches[work], entries[layer])
            for layer, (_, work) in plans.items()
        }

    def touch(self, rows: Span) -> bool:
        """Whether any of these rows is updated."""
        return any(own.start < rows.stop and rows.start < own.stop for own, _ in self.each)


_Lines = list[tuple[int, ...]]  # of a table, all as long as those of entries
_Work = tuple[tuple[Span, int, int], ...]  # spans of rows, each with its padded rank and number of entries


def _plan(each: Sequence[Update]) -> tuple[_Lines, _Work]:
    """Return the entries of one product, those of one span side by side, and what is to be done with them."""
    by_rows: dict[Span, list[LowRank]] = {}
    for rows, change in each:
        by_rows.setdefault(rows, []).append(change)
    entries = [_entry(change) for changes in by_rows.values() for change in changes]
    return entries, tuple(
        (rows, _padded(max(change.rank for change in changes)), len(changes))
        for rows, changes in by_rows.items()
    )


def _tiles(work: _Work) -> dict[int, _Lines]:
    """Return the tiles of each padded rank."""
    found: dict[int, _Lines] = {}
    first = 0
    for rows, rank, count in work:
        own = found.setdefault(rank, [])
        for start in range(rows.start, rows.stop, UPDATE_ROWS):
            own.append((start, min(UPDATE_ROWS, rows.stop - start), first, count, 0, 0))
        first += count
    return found


def _padded(rank: int) -> int:
    """Return the rank of the kernel for a change; one that it refuses has no rank of its own."""
    return next((each for each in KERNEL_RANKS if rank <= each), MAX_KERNEL_RANK)


def _entry(change: LowRank) -> tuple[int, ...]:
    (bits,) = struct.unpack("<i", struct.pack("<f", change.scale))
    return change.down.data_ptr(), change.up.data_ptr(), change.rank, *change.outputs, bits
