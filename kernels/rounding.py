"""Rounding to e4m3 inside kernels, to the very bits of `reference.quantize`.

The mantissa is rounded before the conversion, so that the conversion is exact: Triton's interpreter loses the
carry of a conversion that rounds (3.7.1), and the instruction of a GPU and PyTorch differ beyond the range.
"""

import triton
import triton.language as tl


@triton.jit
def scale_of(peak):  # noqa: ANN201 - part of kernels
    """The smallest power of two that brings a float32 `peak` to at most 448, the largest e4m3 value.

    448 is 1.75 * 2^8: the addition carries into the exponent just above a mantissa of 1.75.
    """
    field = tl.maximum(((peak.to(tl.int32, bitcast=True) + 0x1FFFFF) >> 23) - 8, 1)
    return (field << 23).to(tl.float32, bitcast=True)


@triton.jit
def rounded(values, scale):  # noqa: ANN201 - part of kernels
    """`values / scale`, float32, rounded to a multiple of 2^-9 or to four digits, ties to even."""
    inverse = ((254 << 23) - scale.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    x = values * inverse
    bits = x.to(tl.int32, bitcast=True)
    digits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    small = (x + 24576.0) - 24576.0  # 1.5 * 2^14: its last digit is 2^-9
    return tl.where(tl.abs(x) < 0.015625, small, digits.to(tl.float32, bitcast=True))
