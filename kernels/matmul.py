"""Matrix products in Triton whose every row is computed alike, whatever rows share the product.

A vendor's library picks another kernel for another number of rows, so a row's bits depend on its company.
Here the tile and the order of sums follow from the weight alone: `exact` numerics run all samples in one
product. A persistent grid takes the tiles so that those which run together share weights in the L2 cache.

Floor: 2 * rows * in * out FLOP; [4352, 3072] by [12288, 3072] is 328.6 GFLOP, 0.42 ms at 790 TFLOP/s. To add
the update right here saves to write and to read it, 12.4 us for [4352, 3072] in bfloat16 at 4.3 TB/s, and
costs the norm behind it one more read, 6.2 us.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.activation import gelu
from kernels.arguments import check_columns, check_rows, describe
from kernels.devices import takes_descriptors, target
from kernels.reference import FLOAT16_MAX

GROUP = 8  # tiles of rows that are taken before the next tile of columns


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, products: Sequence[int], out: Tensor | None = None
) -> Tensor:
    """As `reference.linear`; rows do not depend on each other, so `products` change nothing."""
    return _linear(x, weight, bias, products, out, activate=False)


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, products: Sequence[int], out: Tensor | None = None
) -> Tensor:
    """As `reference.linear_gelu`."""
    return _linear(x, weight, bias, products, out, activate=True)


def linear_residual(
    x: Tensor,
    gate: Tensor,
    owner: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    products: Sequence[int],
) -> None:
    """As `reference.linear_residual`: the update is added where it is computed, and never written itself."""
    check_rows("x", x, rows=len(rows))
    check_columns("gate", gate, x.shape[1], like=x, rows=len(gate))
    if owner.shape != (len(x),) or owner.dtype != torch.int32 or not owner.is_contiguous():
        raise ValueError(f"owner: {describe(owner)}; allowed: int32 [{len(x)}]")
    _linear(rows, weight, bias, products, x, activate=False, gate=gate, owner=owner)


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    products: Sequence[int],
    out: Tensor | None,
    *,
    activate: bool,
    gate: Tensor | None = None,
    owner: Tensor | None = None,
) -> Tensor:
    check_rows("x", x, rows=sum(products))
    columns, depth = weight.shape[0], x.shape[1]
    check_columns("weight", weight, depth, like=x, rows=columns)
    check_columns("bias", bias, columns, like=x)
    out = torch.empty(len(x), columns, dtype=x.dtype, device=x.device) if out is None else out
    check_columns("out", out, columns, like=x, rows=len(x))
    tile = tile_for(x.dtype)
    tiles = triton.cdiv(len(x), tile.rows) * triton.cdiv(columns, tile.columns)
    device = target(x.device)
    _matmul[(min(tiles, device.multiprocessors),)](
        x,
        weight,
        bias,
        out,
        gate,
        owner,
        len(x),
        columns,
        depth,
        x.stride(0),
        weight.stride(0),
        out.stride(0),
        0 if gate is None else gate.stride(0),
        LIMIT=FLOAT16_MAX if x.dtype == torch.float16 else None,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        DEPTH=tile.depth,
        GROUP=GROUP,
        ACTIVATE=activate,
        DESCRIPTORS=takes_descriptors(device, x, weight),
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


class Tile(NamedTuple):
    """Rows and columns of a program's tile, the depth of a stage, warps, and stages of the pipeline."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


def tile_for(dtype: torch.dtype) -> Tile:
    """Return the tile that fits registers and shared memory: `python -m kernels.inspect` shows it."""
    return Tile(64, 64, 32, 4, 2) if dtype == torch.float32 else Tile(128, 128, 64, 8, 3)


@triton.jit
def _matmul(
    x,
    weight,
    bias,
    out,
    gate,  # None: `out` is written; else the gated product is added to it
    owner,
    rows,
    columns,
    depth,
    x_stride,
    weight_stride,
    out_stride,
    gate_stride,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
    ACTIVATE: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    if DESCRIPTORS:
        left_from = tl.make_tensor_descriptor(x, [rows, depth], [x_stride, 1], [ROWS, DEPTH])
        right_from = tl.make_tensor_descriptor(weight, [columns, depth], [weight_stride, 1], [COLUMNS, DEPTH])
    else:
        left_from, right_from = x, weight
    row_tiles, column_tiles = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    for tile in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        first = tile // (GROUP * column_tiles) * GROUP
        height = tl.minimum(row_tiles - first, GROUP)
        within = tile % (GROUP * column_tiles)
        first_row = (first + within % height) * ROWS
        first_column = within // height * COLUMNS
        sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, depth, DEPTH):
            left = _load(left_from, first_row, start, rows, depth, x_stride, ROWS, DEPTH, DESCRIPTORS)
            right = _load(
                right_from, first_column, start, columns, depth, weight_stride, COLUMNS, DEPTH, DESCRIPTORS
            )
            sums = tl.dot(left, tl.trans(right), sums, input_precision="tf32x3")
        row = (first_row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        column = first_column + tl.arange(0, COLUMNS)
        sums += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
        if ACTIVATE:
            sums = gelu(sums.to(out.dtype.element_ty).to(tl.float32))  # as if it had been written between
        inside = (row < rows) & (column < columns)[None, :]
        place = out + row * out_stride + column[None, :]
        if gate is not None:
            update = sums.to(out.dtype.element_ty).to(tl.float32)  # likewise
            own = tl.load(owner + row, mask=row < rows, other=0)
            gates = tl.load(gate + own * gate_stride + column[None, :], mask=inside, other=0).to(tl.float32)
            sums = tl.load(place, mask=inside, other=0).to(tl.float32) + update * gates
            if LIMIT is not None:
                sums = tl.minimum(tl.maximum(sums, -LIMIT), LIMIT)
        tl.store(place, sums.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _load(
    source,
    first_row,
    first_column,
    rows,
    columns,
    stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """A tile [ROWS, COLUMNS] of [rows, columns]; zero beyond its borders."""
    if DESCRIPTORS:
        tile = source.load([first_row, first_column])
    else:
        row = (first_row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        column = (first_column + tl.arange(0, COLUMNS))[None, :]
        tile = tl.load(source + row * stride + column, mask=(row < rows) & (column < columns), other=0.0)
    return tile
