"""Every operation of the transformer in plain PyTorch: the specification, the CPU path and the test oracle.

Tensors are `[rows, width]` (see kernels/rows.py), so nothing is padded. What could make a row depend on its
neighbours (a matrix product, whose tiling follows the number of rows, and a vectorised GELU, whose last
elements take a scalar path) runs product by product; see `Layout` in model/layout.py for how `exact` numerics
choose the products.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.float8 import FLOAT8, Quantized, Rows
from kernels.rows import Owners, Sequences
from kernels.updates import Updates

NORM_EPS = 1e-6
FLOAT16_MAX = 65504.0


def split_rows(x: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """Return views of the consecutive rows of `x` [rows, ...], one per entry of `lengths`."""
    return torch.split(x, list(lengths))


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, products: Sequence[int], out: Tensor | None = None
) -> Tensor:
    """Return `x @ weight.T + bias`, computed as one product per entry of `products`.

    Args:
        x: [rows, in].
        weight: [out, in].
        bias: [out].
        products: rows of each product; they sum to `rows`.
        out: where to write it, [rows, out].
    """
    out = x.new_empty(x.shape[0], weight.shape[0]) if out is None else out
    for rows, slot in zip(split_rows(x, products), split_rows(out, products), strict=True):
        torch.addmm(bias, rows, weight.t(), out=slot)
    return out


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, products: Sequence[int], out: Tensor | None = None
) -> Tensor:
    """Return `gelu_tanh(linear(x))`; arguments as `linear`."""
    return gelu_tanh(linear(x, weight, bias, products), products, out)


def linear_residual(
    x: Tensor,
    gate: Tensor,
    owner: Tensor,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    products: Sequence[int],
) -> None:
    """Add `gate * linear(rows)` to `x` in place, every row with its owner's gate.

    Args:
        x: [rows, out].
        gate: [owners, out].
        owner: [rows], int32, whose each row is.
        rows, weight, bias, products: as `linear`'s.
    """
    x.add_(linear(rows, weight, bias, products) * gate[owner])
    if x.dtype == torch.float16:
        x.clamp_(-FLOAT16_MAX, FLOAT16_MAX)


def low_rank_add(x: Tensor, updates: Updates, out: Tensor) -> None:
    """Add to `out` in place what low-rank changes of the weight make of `x`, each for its own rows.

    `out[rows, outputs] += scale * (x[rows] @ down.T) @ up.T`, computed span by span, so that a row does not
    depend on those of other spans.

    Args:
        x: [rows, in], what was multiplied.
        updates: of which rows by which changes.
        out: [rows, out], the product with the weight itself; may be some columns of a wider tensor.
    """
    for rows, change in updates.each:
        inner = rows.of(x) @ change.down.t()
        first, width = change.outputs
        rows.of(out).narrow(1, first, width).addmm_(inner, change.up.t(), alpha=change.scale)


def gelu_tanh(x: Tensor, products: Sequence[int], out: Tensor | None = None) -> Tensor:
    """Return the tanh approximation of GELU of `x` [rows, width], one product's rows at a time.

    `out` [rows, width], where to write it, may be some columns of a wider tensor.
    """
    out = torch.empty_like(x) if out is None else out
    for rows, slot in zip(split_rows(x, products), split_rows(out, products), strict=True):
        slot.copy_(F.gelu(rows, approximate="tanh"))
    return out


def quantize(x: Tensor) -> Quantized:
    """Return `x` [rows, width] in e4m3, each row by the smallest power of two that brings it within 448."""
    peak = x.abs().amax(dim=1, keepdim=True).float()
    field = (((peak.view(torch.int32) + 0x1FFFFF) >> 23) - 8).clamp_min(1)  # 448 is 1.75 * 2^8
    scale = (field << 23).view(torch.float32)
    return Quantized((x.float() / scale).to(FLOAT8), scale)


def quantized_gelu(x: Tensor, products: Sequence[int], beside: Tensor | None = None) -> Quantized:
    """Return the rows `[beside | gelu_tanh(x)]` quantised; arguments as `gelu_tanh`."""
    activated = gelu_tanh(x, products)
    return quantize(activated if beside is None else torch.cat([beside, activated], dim=1))


def quantized_linear(
    x: Quantized, weight: Quantized, bias: Tensor, products: Sequence[int], out: Tensor | None = None
) -> Tensor:
    """Return `x @ weight.T + bias` of quantised rows in the dtype of `bias`; arguments as `linear`."""
    out = bias.new_empty(len(x), len(weight)) if out is None else out
    for values, scale, slot in zip(
        *(split_rows(each, products) for each in (x.values, x.scale, out)), strict=True
    ):
        torch._scaled_mm(
            values,
            weight.values.t(),
            scale_a=scale,
            scale_b=weight.scale.t(),
            bias=bias,
            out_dtype=bias.dtype,
            use_fast_accum=True,
            out=slot,
        )
    return out


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """Return `x / sqrt(mean(x^2) + 1e-6) * scale` over the last dimension, statistics in float32."""
    return F.rms_norm(x, (x.shape[-1],), scale, NORM_EPS)


def modulated_norm(
    x: Tensor, shift: Tensor, scale: Tensor, owners: Owners, *, quantized: bool = False
) -> Rows:
    """Return `layer_norm(x) * (1 + scale) + shift`, every row with its owner's shift and scale.

    Args:
        x: [rows, width]; the LayerNorm has no weights and eps 1e-6.
        shift, scale: [owners, width].
        owners: whose rows these are.
        quantized: whether the result is quantised.
    """
    out = torch.empty_like(x)
    for span, own_shift, own_scale in zip(owners.spans, shift, scale, strict=True):
        normed = F.layer_norm(span.of(x), own_shift.shape, 1 + own_scale, own_shift, NORM_EPS)
        span.of(out).copy_(normed)
    return quantize(out) if quantized else out


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
    """Add `gate * y` to `x` in place, every row with its owner's gate, and return its next `modulated_norm`.

    float16 is clipped to its finite range: the published weights overflow it, and pictures come out black
    (huggingface/diffusers issues 9096 and 9097).

    Args:
        x, y: [rows, width].
        gate, shift, scale: [owners, width].
        owners: whose rows these are.
        quantized: whether the result is quantised.
    """
    for span, own_gate in zip(owners.spans, gate, strict=True):
        span.of(x).addcmul_(span.of(y), own_gate)
    if x.dtype == torch.float16:
        x.clamp_(-FLOAT16_MAX, FLOAT16_MAX)
    return modulated_norm(x, shift, scale, owners, quantized=quantized)


def qk_norm_rope(qkv: Tensor, q_scale: Tensor, k_scale: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Normalise q and k per head and rotate them by their positions, in place; v stays as it is.

    Args:
        qkv: [rows, 3 * heads * head_dim], packed `[q | k | v]`, each head-major.
        q_scale, k_scale: [head_dim], the weights of the RMS norms.
        cos, sin: [rows, head_dim / 2], float32.
    """
    q, k, _ = qkv.view(len(qkv), 3, -1, len(q_scale)).unbind(1)
    for heads, scale in ((q, q_scale), (k, k_scale)):
        heads.copy_(rope(rms_norm(heads, scale), cos, sin))


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the adjacent pairs of `x` [rows, heads, head_dim] by `cos` and `sin` [rows, head_dim / 2].

    Computed in float32 and rounded once to the dtype of `x` (black-forest-labs/flux, src/flux/math.py).
    """
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    c, s = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack([even * c - odd * s, even * s + odd * c], dim=-1).flatten(-2).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, out: Tensor | None = None) -> Tensor:
    """Full bidirectional attention of each sample over its own rows, scaled by `head_dim ** -0.5`.

    Args:
        q, k, v: [rows, heads, head_dim].
        sequences: the rows of each sample.
        out: where to write it; may be some columns of a wider tensor.

    Returns:
        [rows, heads * head_dim], heads concatenated.
    """
    out = q.new_empty(len(q), q.shape[1] * q.shape[2]) if out is None else out
    for txt, img in sequences.spans:
        attended = _attend(*(torch.cat([txt.of(rows), img.of(rows)]) for rows in (q, k, v)))
        txt.of(out).copy_(attended[: txt.rows])
        img.of(out).copy_(attended[txt.rows :])
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (rows.transpose(0, 1).unsqueeze(0) for rows in (q, k, v))  # [1, heads, rows, head_dim]
    return F.scaled_dot_product_attention(q, k, v).squeeze(0).transpose(0, 1).flatten(1)


def euler_step(latents: Tensor, velocity: Tensor, deltas: Tensor, owners: Owners) -> Tensor:
    """Return `latents + delta * velocity`, every row with its owner's `sigma_next - sigma`.

    Args:
        latents: [rows, channels], float32.
        velocity: [rows, channels], of any dtype; the sum is in float32.
        deltas: [owners], float32.
        owners: whose rows these are.
    """
    out = torch.empty_like(latents)
    for span, delta in zip(owners.spans, deltas, strict=True):
        torch.add(span.of(latents), span.of(velocity).float() * delta, out=span.of(out))
    return out


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool
) -> Tensor:
    """Return GroupNorm of `x` [n, channels, height, width] and, if asked for, its SiLU."""
    normed = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(normed) if silu else normed


def to_pixels(image: Tensor) -> Tensor:
    """Map a decoded image [3, height, width] in about [-1, 1] to uint8 [height, width, 3].

    `round(clamp(x / 2 + 0.5, 0, 1) * 255)` with ties to even, in float32 whatever the dtype of `image`.
    """
    unit = (image.float() * 0.5 + 0.5).clamp_(0, 1)
    return (unit * 255).round_().to(torch.uint8).permute(1, 2, 0).contiguous()
