"""The tanh approximation of GELU in Triton, written wherever and however the next product reads it.

Floor: [4352, 12288] in bfloat16 read and written is 213.9 MB: 49.7 us at 4.3 TB/s. Quantised together with
the attention's 3072 columns it is 200.5 MB: 46.6 us. Rows are read twice there, the second time from a cache.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check_rows, describe
from kernels.float8 import FLOAT8, Quantized
from kernels.rounding import rounded, scale_of

_COLUMNS = 2048


def gelu_tanh(x: Tensor, products: Sequence[int], out: Tensor | None = None) -> Tensor:
    """As `reference.gelu_tanh`; every element is computed alike, so `products` change nothing."""
    check_rows("x", x, rows=sum(products))
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    check_rows("out", out, like=x)
    columns = min(_COLUMNS, triton.next_power_of_2(x.shape[1]))
    _gelu_tanh[(len(x), triton.cdiv(x.shape[1], columns))](
        x,
        out,
        x.stride(0),
        out.stride(0),
        WIDTH=x.shape[1],
        COLUMNS=columns,
        num_warps=max(1, min(8, columns // 256)),
    )
    return out


def quantize(x: Tensor) -> Quantized:
    """As `reference.quantize`."""
    return _quantized(x, None)


def quantized_gelu(x: Tensor, products: Sequence[int], beside: Tensor | None = None) -> Quantized:
    """As `reference.quantized_gelu`; every element is computed alike, so `products` change nothing."""
    check_rows("x", x, rows=sum(products))
    return _quantized(beside, x)


def _quantized(plain: Tensor | None, activated: Tensor | None) -> Quantized:
    """Quantise the rows `[plain | gelu(activated)]`."""
    parts = [x for x in (plain, activated) if x is not None]
    for x in parts:
        check_rows("x", x, rows=len(parts[0]))
        if (x.dtype, x.device) != (parts[0].dtype, parts[0].device):
            raise ValueError(f"beside: {describe(parts[0])} does not fit {describe(x)}")
    rows, width = len(parts[0]), sum(x.shape[1] for x in parts)
    out = torch.empty(rows, width, dtype=FLOAT8, device=parts[0].device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=parts[0].device)
    columns = min(_COLUMNS, triton.next_power_of_2(width))
    _quantize[(rows,)](
        plain,
        activated,
        out,
        scale,
        0 if plain is None else plain.stride(0),
        0 if activated is None else activated.stride(0),
        PLAIN=0 if plain is None else plain.shape[1],
        WIDTH=width,
        COLUMNS=columns,
        num_warps=max(1, min(8, columns // 256)),
    )
    return Quantized(out, scale)


@triton.jit
def _quantize(
    plain,
    activated,
    out,
    scale,
    plain_stride,
    activated_stride,
    PLAIN: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    peaks = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, WIDTH, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        values = _columns(plain, activated, row, column, plain_stride, activated_stride, PLAIN, WIDTH)
        peaks = tl.maximum(peaks, tl.abs(values))
    own_scale = scale_of(tl.max(peaks, axis=0))
    tl.store(scale + row, own_scale)
    for start in range(0, WIDTH, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        values = _columns(plain, activated, row, column, plain_stride, activated_stride, PLAIN, WIDTH)
        place = out + row * WIDTH + column
        tl.store(place, rounded(values, own_scale).to(out.dtype.element_ty), mask=column < WIDTH)


@triton.jit
def _columns(
    plain, activated, row, column, plain_stride, activated_stride, PLAIN: tl.constexpr, WIDTH: tl.constexpr
):
    """Columns of the row `[plain | gelu(activated)]`, float32; zero beyond its end."""
    values = tl.zeros(column.shape, tl.float32)
    if plain is not None:
        values = tl.load(plain + row * plain_stride + column, mask=column < PLAIN, other=0).to(tl.float32)
    if activated is not None:
        own = activated + row * activated_stride + (column - PLAIN)
        right = tl.load(own, mask=(column >= PLAIN) & (column < WIDTH), other=0)
        # as if the activation had been written between; gelu(0) is 0
        values += gelu(right.to(tl.float32)).to(right.dtype).to(tl.float32)
    return values


@triton.jit
def _gelu_tanh(x, out, x_stride, out_stride, WIDTH: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < WIDTH
    values = tl.load(x + row * x_stride + column, mask=inside, other=0).to(tl.float32)
    tl.store(out + row * out_stride + column, gelu(values), mask=inside)


@triton.jit
def gelu(x):  # noqa: ANN201 - part of kernels
    """`x / 2 * (1 + tanh(u))`, which is `x * sigmoid(2 u)`, of a float32 tile; the bound keeps exp finite."""
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)  # sqrt(2 / pi)
    return x / (1 + tl.exp(tl.minimum(-2 * u, 80.0)))
