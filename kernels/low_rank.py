"""Low-rank updates in Triton: the adapters of a step in one launch per linear, whatever rows each is for.

A program takes some rows of one span and some columns of the output, and adds one update after the other: the
inner product stays in registers, so that nothing but the output is written. Programs that share rows and not
columns compute it again; of those there are only as many as it takes to fill the device. Rows do not see each
other, and how their sums are ordered does not depend on other spans.

Floor: to read and write [4352, 9216] in bfloat16 is 160 MB: 37 us at 4.3 TB/s, and its rows of 3072 another
6 us; the two products of rank 16 are 1.7 GFLOP.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check_columns, check_rows, describe
from kernels.devices import target
from kernels.updates import MAX_KERNEL_RANK, UPDATE_ROWS, LowRank, Updates

PROGRAMS = 2  # for each multiprocessor, where there are columns enough


def low_rank_add(x: Tensor, updates: Updates, out: Tensor) -> None:
    """As `reference.low_rank_add`, summed in float32, the inner product rounded in between."""
    check_rows("x", x)
    check_rows("out", out, rows=len(x))
    check_columns("out", out, out.shape[1], like=x, rows=len(x))
    for _, change in updates.each:
        _check_change(change, x, out)
    device = target(x.device)
    for rank, tiles in updates.tiles:
        tile = tile_for(rank, x.dtype)
        wanted = triton.cdiv(PROGRAMS * device.multiprocessors, len(tiles))
        per_program = triton.cdiv(triton.cdiv(out.shape[1], tile.columns), wanted) * tile.columns
        _low_rank_add[(len(tiles), triton.cdiv(out.shape[1], per_program))](
            x,
            out,
            tiles,
            updates.entries,
            x.shape[1],
            out.shape[1],
            per_program,
            x.stride(0),
            out.stride(0),
            tiles.stride(0),
            updates.entries.stride(0),
            ROWS=UPDATE_ROWS,
            DEPTH=tile.depth,
            RANK=rank,
            COLUMNS=tile.columns,
            num_warps=tile.warps,
            num_stages=2,
        )


class Tile(NamedTuple):
    """The depth of a stage, the columns that are added to at once, and warps."""

    depth: int
    columns: int
    warps: int


def tile_for(rank: int, dtype: torch.dtype) -> Tile:
    """Return the tile that fits registers and shared memory: `python -m kernels.inspect` shows it.

    Products of float32 are three of halves, which want registers for all of them.
    """
    if dtype == torch.float32:
        return Tile(16, 16, 8)
    return Tile(32, 64, 4 if rank <= 32 else 8)


def _check_change(change: LowRank, x: Tensor, out: Tensor) -> None:
    rank, (first, width) = change.rank, change.outputs
    check_columns("down", change.down, x.shape[1], like=x, rows=rank)
    check_columns("up", change.up, rank, like=x, rows=width)
    for name, matrix in (("down", change.down), ("up", change.up)):
        if not matrix.is_contiguous() or matrix.data_ptr() % 16:
            raise ValueError(f"{name}: {describe(matrix)} does not lie whole at an address of whole 16 bytes")
    if not 1 <= rank <= MAX_KERNEL_RANK or first < 0 or first + width > out.shape[1]:
        raise ValueError(
            f"a change of rank {rank} of outputs {first} to {first + width}; allowed: rank 1 to "
            f"{MAX_KERNEL_RANK} and outputs up to {out.shape[1]}"
        )


@triton.jit
def _low_rank_add(
    x,
    out,
    tiles,
    entries,
    depth,
    columns,
    per_program,
    x_stride,
    out_stride,
    tile_stride,
    entry_stride,
    ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile = tiles + tl.program_id(0) * tile_stride
    first_row, rows = tl.load(tile), tl.load(tile + 1).to(tl.int32)
    first_entry, count = tl.load(tile + 2).to(tl.int32), tl.load(tile + 3).to(tl.int32)
    begin = tl.program_id(1) * per_program
    end = tl.minimum(begin + per_program, columns)
    within = tl.arange(0, ROWS)[:, None]
    row, row_inside = first_row + within, within < rows
    of_rank = tl.arange(0, RANK)
    for index in range(first_entry, first_entry + count):
        entry = entries + index * entry_stride
        down = tl.multiple_of(tl.load(entry).to(tl.pointer_type(x.dtype.element_ty)), 16)
        up = tl.multiple_of(tl.load(entry + 1).to(tl.pointer_type(x.dtype.element_ty)), 16)
        rank, first_output = tl.load(entry + 2).to(tl.int32), tl.load(entry + 3).to(tl.int32)
        outputs = tl.load(entry + 4).to(tl.int32)
        scale = tl.load(entry + 5).to(tl.int32).to(tl.float32, bitcast=True)
        low, high = tl.maximum(begin, first_output), tl.minimum(end, first_output + outputs)
        if low < high:
            inner = tl.zeros([ROWS, RANK], tl.float32)
            for start in range(0, depth, DEPTH):
                column = start + tl.arange(0, DEPTH)[None, :]
                left = tl.load(x + row * x_stride + column, mask=row_inside & (column < depth), other=0.0)
                right = tl.load(
                    down + of_rank[:, None] * depth + column,
                    mask=(of_rank < rank)[:, None] & (column < depth),
                    other=0.0,
                )
                inner = tl.dot(left, tl.trans(right), inner, input_precision="tf32x3")
            inner = inner.to(x.dtype.element_ty)
            # Whole tiles: so in every change it is the same thread that reads and writes an element.
            for first_column in range(low // COLUMNS * COLUMNS, high, COLUMNS):
                column = first_column + tl.arange(0, COLUMNS)
                changed = (column >= low) & (column < high)
                weights = tl.load(
                    up + (column - first_output)[:, None] * rank + of_rank[None, :],
                    mask=changed[:, None] & (of_rank < rank)[None, :],
                    other=0.0,
                )
                sums = tl.dot(inner, tl.trans(weights), input_precision="tf32x3")
                place = out + row * out_stride + column[None, :]
                inside = row_inside & changed[None, :]
                before = tl.load(place, mask=inside, other=0.0).to(tl.float32)
                tl.store(place, (before + scale * sums).to(out.dtype.element_ty), mask=inside)
