"""The norms over whole rows in Triton: one read and one write of each row, statistics in float32.

Floor: bytes over bandwidth. A [4352, 3072] bfloat16 tensor is 26.7 MB: 12.4 us to read and write at the
4.3 TB/s that an H200 copies; `gated_residual_norm` reads two and writes two, 24.9 us. Quantised, the result
is half as large: 9.3 and 21.7 us.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check_columns, check_rows
from kernels.float8 import FLOAT8, Quantized, Rows
from kernels.reference import FLOAT16_MAX, NORM_EPS
from kernels.rounding import rounded, scale_of
from kernels.rows import Owners

_ELEMENTS = 4096  # of a program's tile: one row of width 3072, several narrow ones


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """As `reference.rms_norm`, of `x` [rows, width]."""
    check_rows("x", x)
    check_columns("scale", scale, x.shape[1], like=x)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows, columns, warps = _tile(x.shape[1])
    _rms_norm[(triton.cdiv(len(x), rows),)](
        x,
        scale,
        out,
        len(x),
        x.stride(0),
        out.stride(0),
        WIDTH=x.shape[1],
        EPS=NORM_EPS,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=warps,
    )
    return out


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, owners: Owners, *, quantized: bool = False
) -> Rows:
    """As `reference.modulated_norm`."""
    return _modulated(x, None, None, shift, scale, owners, quantized=quantized)


def gated_residual_norm(
    x: Tensor,
    gate: Tensor,
    y: Tensor,
    shift: Tensor,
    scale: Tensor,
    owners: Owners,
    *,
    quantized: bool = False,
) -> Rows:
    """As `reference.gated_residual_norm`."""
    check_rows("y", y, like=x)
    check_columns("gate", gate, x.shape[1], like=x, rows=len(owners.spans))
    return _modulated(x, gate, y, shift, scale, owners, quantized=quantized)


def _modulated(
    x: Tensor,
    gate: Tensor | None,
    y: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    owners: Owners,
    *,
    quantized: bool,
) -> Rows:
    check_rows("x", x, rows=len(owners.by_row))
    for name, vectors in (("shift", shift), ("scale", scale)):
        check_columns(name, vectors, x.shape[1], like=x, rows=len(owners.spans))
    out = torch.empty(x.shape, dtype=FLOAT8 if quantized else x.dtype, device=x.device)
    row_scale = torch.empty(len(x), 1, dtype=torch.float32, device=x.device) if quantized else None
    rows, columns, warps = _tile(x.shape[1])
    _modulated_norm[(triton.cdiv(len(x), rows),)](
        x,
        gate,
        y,
        shift,
        scale,
        owners.by_row,
        out,
        row_scale,
        len(x),
        x.stride(0),
        0 if gate is None else gate.stride(0),
        0 if y is None else y.stride(0),
        shift.stride(0),
        scale.stride(0),
        out.stride(0),
        WIDTH=x.shape[1],
        EPS=NORM_EPS,
        LIMIT=FLOAT16_MAX if x.dtype == torch.float16 else None,
        ROWS=rows,
        COLUMNS=columns,
        num_warps=warps,
    )
    return out if row_scale is None else Quantized(out, row_scale)


def _tile(width: int) -> tuple[int, int, int]:
    """Return the rows and columns of a program's tile and its warps."""
    columns = triton.next_power_of_2(width)
    rows = max(1, min(16, _ELEMENTS // columns))
    return rows, columns, max(1, min(8, rows * columns // 512))


@triton.jit
def _rms_norm(
    x,
    scale,
    out,
    x_rows,
    x_stride,
    out_stride,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < x_rows) & (column < WIDTH)
    values = tl.load(x + row * x_stride + column, mask=inside, other=0).to(tl.float32)
    mean_square = tl.sum(values * values, axis=1, keep_dims=True) / WIDTH
    weight = tl.load(scale + column, mask=column < WIDTH, other=0).to(tl.float32)
    tl.store(out + row * out_stride + column, values * tl.rsqrt(mean_square + EPS) * weight, mask=inside)


@triton.jit
def _modulated_norm(
    x,
    gate,
    y,
    shift,
    scale,
    owner,
    out,
    row_scale,
    x_rows,
    x_stride,
    gate_stride,
    y_stride,
    shift_stride,
    scale_stride,
    out_stride,
    WIDTH: tl.constexpr,
    EPS: tl.constexpr,
    LIMIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < x_rows) & (column < WIDTH)
    own = tl.load(owner + row, mask=row < x_rows, other=0)
    values = tl.load(x + row * x_stride + column, mask=inside, other=0).to(tl.float32)
    if y is not None:
        update = tl.load(y + row * y_stride + column, mask=inside, other=0).to(tl.float32)
        values += update * tl.load(gate + own * gate_stride + column, mask=inside, other=0).to(tl.float32)
        if LIMIT is not None:
            values = tl.minimum(tl.maximum(values, -LIMIT), LIMIT)
        stored = values.to(x.dtype.element_ty)
        tl.store(x + row * x_stride + column, stored, mask=inside)
        values = stored.to(tl.float32)  # what the next reader of x sees
    mean = tl.sum(values, axis=1, keep_dims=True) / WIDTH
    centred = tl.where(inside, values - mean, 0)
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / WIDTH
    factor = 1 + tl.load(scale + own * scale_stride + column, mask=inside, other=0).to(tl.float32)
    offset = tl.load(shift + own * shift_stride + column, mask=inside, other=0).to(tl.float32)
    normed = centred * tl.rsqrt(variance + EPS) * factor + offset
    if row_scale is not None:
        normed = normed.to(x.dtype.element_ty).to(tl.float32)  # as if it had been written between
        own_scale = scale_of(tl.max(tl.where(inside, tl.abs(normed), 0), axis=1, keep_dims=True))
        tl.store(row_scale + row, own_scale, mask=row < x_rows)
        normed = rounded(normed, own_scale)
    tl.store(out + row * out_stride + column, normed.to(out.dtype.element_ty), mask=inside)
