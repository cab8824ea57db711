"""RMS norm of queries and keys per head and their rotation by position, in place, in Triton.

One program has all heads of a row: q and k of a row are adjacent in the packed projection, and the row's
rotations are read once. v is not touched: attention reads it where the projection wrote it.

Floor: q and k of [4352, 3 * 3072] in bfloat16 are 53.5 MB, read and written: 24.9 us at 4.3 TB/s.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import check_columns, check_rows, describe
from kernels.reference import NORM_EPS

HEAD_DIMS = (32, 64, 128)


def qk_norm_rope(qkv: Tensor, q_scale: Tensor, k_scale: Tensor, cos: Tensor, sin: Tensor) -> None:
    """As `reference.qk_norm_rope`; head_dim is 32, 64 or 128."""
    check_rows("qkv", qkv)
    head_dim = q_scale.shape[0]
    if head_dim not in HEAD_DIMS or qkv.shape[1] % (3 * head_dim):
        raise ValueError(
            f"qkv: {describe(qkv)} with heads of {head_dim}; allowed: 3 * heads * one of {HEAD_DIMS} columns"
        )
    for name, scale in (("q_scale", q_scale), ("k_scale", k_scale)):
        check_columns(name, scale, head_dim, like=qkv)
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (len(qkv), head_dim // 2) or table.dtype != torch.float32 or table.stride(1) != 1:
            raise ValueError(f"{name}: {describe(table)}; allowed: float32 [{len(qkv)}, {head_dim // 2}]")
    heads = 2 * qkv.shape[1] // (3 * head_dim)
    tile = triton.next_power_of_2(heads)
    _qk_norm_rope[(len(qkv),)](
        qkv,
        q_scale,
        k_scale,
        cos,
        sin,
        qkv.stride(0),
        cos.stride(0),
        sin.stride(0),
        HEADS=heads,
        HEAD_DIM=head_dim,
        EPS=NORM_EPS,
        TILE=tile,
        num_warps=max(1, min(8, tile * head_dim // 512)),
    )


@triton.jit
def _qk_norm_rope(
    qkv,
    q_scale,
    k_scale,
    cos,
    sin,
    qkv_stride,
    cos_stride,
    sin_stride,
    HEADS: tl.constexpr,  # of q and k together
    HEAD_DIM: tl.constexpr,
    EPS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, TILE)[:, None]
    column = tl.arange(0, HEAD_DIM)[None, :]
    pair = tl.arange(0, HEAD_DIM // 2)[None, :]
    inside = (head < HEADS) & (column < HEAD_DIM)
    place = qkv + row * qkv_stride + head * HEAD_DIM + column
    x = tl.load(place, mask=inside, other=0)
    values = x.to(tl.float32)
    mean_square = tl.sum(values * values, axis=1, keep_dims=True) / HEAD_DIM
    is_query = head < HEADS // 2
    weight = tl.where(is_query, tl.load(q_scale + column), tl.load(k_scale + column)).to(tl.float32)
    normed = (values * tl.rsqrt(mean_square + EPS) * weight).to(x.dtype).to(tl.float32)
    even, odd = tl.split(tl.reshape(normed, (TILE, HEAD_DIM // 2, 2)))
    c = tl.load(cos + row * cos_stride + pair)
    s = tl.load(sin + row * sin_stride + pair)
    turned = tl.join(even * c - odd * s, even * s + odd * c)
    tl.store(place, tl.reshape(turned, (TILE, HEAD_DIM)).to(x.dtype), mask=inside)
