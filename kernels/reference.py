"""Every operation of the transformer in plain PyTorch: the specification, the CPU path and the test oracle.

Tensors are `[rows, width]`: the rows of all samples one after another. `lengths` says how many rows each
sample has, so nothing is padded. What could make a row depend on its neighbours (a matrix product, whose
tiling follows the number of rows, and a vectorised GELU, whose last elements take a scalar path) runs
product by product; see `Layout` in model/layout.py for how `exact` numerics choose the products.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6


def split_rows(x: Tensor, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    """Return views of the consecutive rows of `x` [rows, ...], one per entry of `lengths`."""
    return torch.split(x, list(lengths))


def linear(x: Tensor, weight: Tensor, bias: Tensor, products: Sequence[int]) -> Tensor:
    """Return `x @ weight.T + bias`, computed as one product per entry of `products`.

    Args:
        x: [rows, in].
        weight: [out, in].
        bias: [out].
        products: rows of each product; they sum to `rows`.
    """
    out = x.new_empty(x.shape[0], weight.shape[0])
    for rows, slot in zip(split_rows(x, products), split_rows(out, products), strict=True):
        torch.addmm(bias, rows, weight.t(), out=slot)
    return out


def gelu_tanh(x: Tensor, products: Sequence[int]) -> Tensor:
    """Return the tanh approximation of GELU of `x` [rows, width], one product's rows at a time."""
    if len(products) == 1:
        return F.gelu(x, approximate="tanh")
    return torch.cat([F.gelu(rows, approximate="tanh") for rows in split_rows(x, products)])


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    """Return `x / sqrt(mean(x^2) + 1e-6) * scale` over the last dimension, statistics in float32."""
    return F.rms_norm(x, (x.shape[-1],), scale, NORM_EPS)


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return `layer_norm(x) * (1 + scale) + shift` with each sample's own shift and scale.

    Args:
        x: [rows, width]; the LayerNorm has no weights and eps 1e-6.
        shift, scale: [samples, width].
        lengths: rows of each sample.
    """
    out = F.layer_norm(x, (x.shape[-1],), eps=NORM_EPS)
    for rows, sample_shift, sample_scale in zip(split_rows(out, lengths), shift, scale, strict=True):
        rows.mul_(1 + sample_scale).add_(sample_shift)
    return out


def gated_residual(x: Tensor, gate: Tensor, y: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return `x + gate * y` with each sample's own gate.

    float16 is clipped to its finite range: the published weights overflow it, and pictures come out black
    (huggingface/diffusers issues 9096 and 9097).

    Args:
        x, y: [rows, width].
        gate: [samples, width].
        lengths: rows of each sample.
    """
    out = torch.empty_like(x)
    slots, x_parts, y_parts = (split_rows(rows, lengths) for rows in (out, x, y))
    for slot, x_rows, sample_gate, y_rows in zip(slots, x_parts, gate, y_parts, strict=True):
        torch.mul(y_rows, sample_gate, out=slot)
        slot.add_(x_rows)
    return out.clamp_(-65504, 65504) if out.dtype == torch.float16 else out


def qk_norm_rope(
    qkv: Tensor, q_scale: Tensor, k_scale: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise q and k per head, rotate them by their positions, and hand v through.

    Args:
        qkv: [rows, 3 * heads * head_dim], packed `[q | k | v]`, each head-major.
        q_scale, k_scale: [head_dim], the weights of the RMS norms.
        cos, sin: [rows, head_dim / 2], float32.

    Returns:
        q, k, v: [rows, heads, head_dim].
    """
    q, k, v = qkv.view(len(qkv), 3, -1, q_scale.shape[0]).unbind(1)
    return rope(rms_norm(q, q_scale), cos, sin), rope(rms_norm(k, k_scale), cos, sin), v


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the adjacent pairs of `x` [rows, heads, head_dim] by `cos` and `sin` [rows, head_dim / 2].

    Computed in float32 and rounded once to the dtype of `x` (black-forest-labs/flux, src/flux/math.py).
    """
    even, odd = x.float().view(*x.shape[:-1], -1, 2).unbind(-1)
    c, s = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.stack([even * c - odd * s, even * s + odd * c], dim=-1).flatten(-2).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Full bidirectional attention of each sample over its own rows, scaled by `head_dim ** -0.5`.

    Args:
        q, k, v: [rows, heads, head_dim].
        lengths: rows of each sample.

    Returns:
        [rows, heads * head_dim], heads concatenated.
    """
    per_sample = zip(*(split_rows(rows, lengths) for rows in (q, k, v)), strict=True)
    return torch.cat([_attend(*rows) for rows in per_sample])


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (rows.transpose(0, 1).unsqueeze(0) for rows in (q, k, v))  # [1, heads, rows, head_dim]
    return F.scaled_dot_product_attention(q, k, v).squeeze(0).transpose(0, 1).flatten(1)


def euler_step(latents: Tensor, velocity: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """Return `latents + (sigma_next - sigma) * velocity`, float32 [rows, channels]."""
    return latents + (sigma_next - sigma) * velocity


def to_pixels(image: Tensor) -> Tensor:
    """Map a decoded image [3, height, width] in about [-1, 1] to uint8 [height, width, 3].

    `round(clamp(x / 2 + 0.5, 0, 1) * 255)` with ties to even, in float32 whatever the dtype of `image`.
    """
    unit = (image.float() * 0.5 + 0.5).clamp_(0, 1)
    return (unit * 255).round_().to(torch.uint8).permute(1, 2, 0).contiguous()
