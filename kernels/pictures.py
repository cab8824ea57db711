"""The ends of the path in Triton: the Euler step of the latents, and the picture's pixels.

Both are small: a picture of 1024x1024 is 1 MB of latents and 3 MB of pixels, a microsecond or two at
4.3 TB/s. What they save is launches and the float32 copies in between.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check_rows, describe
from kernels.rows import Owners

_COLUMNS = 1024
_CHANNELS = 3


def euler_step(latents: Tensor, velocity: Tensor, deltas: Tensor, owners: Owners) -> Tensor:
    """As `reference.euler_step`."""
    check_rows("latents", latents, rows=len(owners.by_row))
    check_rows("velocity", velocity, rows=len(latents))
    if velocity.shape != latents.shape or latents.dtype != torch.float32:
        raise ValueError(
            f"latents: {describe(latents)}, velocity: {describe(velocity)}; allowed: float32 latents"
        )
    if deltas.shape != (len(owners.spans),) or deltas.dtype != torch.float32:
        raise ValueError(f"deltas: {describe(deltas)}; allowed: float32 [{len(owners.spans)}]")
    out = torch.empty(latents.shape, dtype=latents.dtype, device=latents.device)
    _euler_step[(len(latents),)](
        latents,
        velocity,
        deltas,
        owners.by_row,
        out,
        latents.stride(0),
        velocity.stride(0),
        out.stride(0),
        WIDTH=latents.shape[1],
        COLUMNS=triton.next_power_of_2(latents.shape[1]),
        num_warps=1,
    )
    return out


def to_pixels(image: Tensor) -> Tensor:
    """As `reference.to_pixels`."""
    if image.dim() != _CHANNELS or image.shape[0] != _CHANNELS or not image.is_floating_point():
        raise ValueError(f"image: {describe(image)}; allowed: floating point [3, height, width]")
    _, height, width = image.shape
    out = torch.empty(height, width, _CHANNELS, dtype=torch.uint8, device=image.device)
    _to_pixels[(height, triton.cdiv(_CHANNELS * width, _COLUMNS))](
        image, out, *image.stride(), WIDTH=width, COLUMNS=_COLUMNS, num_warps=4
    )
    return out


@triton.jit
def _euler_step(
    latents,
    velocity,
    deltas,
    owner,
    out,
    latents_stride,
    velocity_stride,
    out_stride,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < WIDTH
    delta = tl.load(deltas + tl.load(owner + row))
    here = tl.load(latents + row * latents_stride + column, mask=inside)
    moved = tl.load(velocity + row * velocity_stride + column, mask=inside).to(tl.float32)
    tl.store(out + row * out_stride + column, here + delta * moved, mask=inside)


@triton.jit
def _to_pixels(
    image, out, channel_stride, row_stride, column_stride, WIDTH: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)  # column * 3 + channel
    inside = place < 3 * WIDTH
    source = (place % 3) * channel_stride + row * row_stride + (place // 3) * column_stride
    x = tl.load(image + source, mask=inside, other=0).to(tl.float32)
    unit = tl.minimum(tl.maximum(x * 0.5 + 0.5, 0.0), 1.0) * 255
    whole = tl.floor(unit)
    rest = unit - whole
    is_odd = whole - 2 * tl.floor(whole * 0.5)
    up = (rest > 0.5) | ((rest == 0.5) & (is_odd > 0.5))  # ties to even
    tl.store(out + row * (3 * WIDTH) + place, (whole + tl.where(up, 1.0, 0.0)).to(tl.uint8), mask=inside)
