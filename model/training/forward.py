"""The transformer as it is trained: a batch of samples, each with some of its tokens standing for all.

The same weights as model/transformer.py, whose forward pass is made for serving: rows of unequal samples,
no gradients, one sample's bits independent of another's. Here every sample has the same number of tokens.
Tokens are a random selection of a picture's, and the logarithm of how many each one stands for is added to
its attention logits, so that sums over all tokens keep their expectation. A test holds both passes equal.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.layers import DoubleStreamBlock, QKNorm, SingleStreamBlock, StreamAttention
from model.transformer import Transformer, sinusoid

NORM_EPS = 1e-6


def velocity(
    transformer: Transformer,
    img: Tensor,
    txt: Tensor,
    pooled: Tensor,
    sigmas: Tensor,
    rotation: tuple[Tensor, Tensor],
    stands_for: Tensor,
) -> Tensor:
    """Return the velocity of every image token.

    Args:
        img: [n, tokens, 64], noisy.
        txt: [n, text tokens, text_width], T5's states.
        pooled: [n, pooled_width], CLIP's vector.
        sigmas: [n], in [0, 1].
        rotation: cos and sin, [n, text tokens + tokens, head_dim / 2], the text first.
        stands_for: [n, 1, 1, text tokens + tokens], logarithms; -inf for what is not there.

    Returns:
        [n, tokens, 64].
    """
    vec = transformer.time_in(sinusoid(sigmas * 1000)) + transformer.vector_in(pooled)
    vec = F.silu(vec)
    x, y = transformer.img_in(img), transformer.txt_in(txt)
    for block in transformer.double_blocks:
        assert isinstance(block, DoubleStreamBlock), "double_blocks holds nothing else"
        x, y = _double(block, x, y, vec, rotation, stands_for)
    joint = torch.cat([y, x], dim=1)
    for block in transformer.single_blocks:
        assert isinstance(block, SingleStreamBlock), "single_blocks holds nothing else"
        joint = _single(block, joint, vec, rotation, stands_for)
    _, x = torch.split(joint, [txt.shape[1], img.shape[1]], dim=1)
    shift, scale = transformer.final_layer.adaLN_modulation[1](vec).unsqueeze(1).chunk(2, dim=-1)
    out: Tensor = transformer.final_layer.linear(_norm(x) * (1 + scale) + shift)
    return out


def _double(
    block: DoubleStreamBlock,
    x: Tensor,
    y: Tensor,
    vec: Tensor,
    rotation: tuple[Tensor, Tensor],
    stands_for: Tensor,
) -> tuple[Tensor, Tensor]:
    x_mod, y_mod = block.img_mod.lin(vec), block.txt_mod.lin(vec)
    x_shift, x_scale, x_gate, x_shift_2, x_scale_2, x_gate_2 = x_mod.unsqueeze(1).chunk(6, dim=-1)
    y_shift, y_scale, y_gate, y_shift_2, y_scale_2, y_gate_2 = y_mod.unsqueeze(1).chunk(6, dim=-1)
    length = y.shape[1]
    y_heads = _heads(block.txt_attn, _norm(y) * (1 + y_scale) + y_shift)
    x_heads = _heads(block.img_attn, _norm(x) * (1 + x_scale) + x_shift)
    q, k, v = (torch.cat(pair, dim=1) for pair in zip(y_heads, x_heads, strict=True))
    attended = _attend(q, k, v, rotation, stands_for)
    y_attended, x_attended = torch.split(attended, [length, x.shape[1]], dim=1)
    y = y + y_gate * block.txt_attn.proj(y_attended)
    x = x + x_gate * block.img_attn.proj(x_attended)
    y = y + y_gate_2 * block.txt_mlp(_norm(y) * (1 + y_scale_2) + y_shift_2)
    x = x + x_gate_2 * block.img_mlp(_norm(x) * (1 + x_scale_2) + x_shift_2)
    return x, y


def _single(
    block: SingleStreamBlock, x: Tensor, vec: Tensor, rotation: tuple[Tensor, Tensor], stands_for: Tensor
) -> Tensor:
    shift, scale, gate = block.modulation.lin(vec).unsqueeze(1).chunk(3, dim=-1)
    projected = block.linear1(_norm(x) * (1 + scale) + shift)
    qkv, hidden = projected.tensor_split([3 * block.width], dim=-1)
    attended = _attend(*_normed(block.norm, qkv), rotation, stands_for)
    both = torch.cat([attended, F.gelu(hidden, approximate="tanh")], dim=-1)
    out: Tensor = x + gate * block.linear2(both)
    return out


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), eps=NORM_EPS)


def _heads(attention: StreamAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _normed(attention.norm, attention.qkv(x))


def _normed(norm: QKNorm, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split packed qkv [n, tokens, 3 * width] into heads [n, tokens, heads, head_dim], q and k normalised."""
    width = norm.query_norm.scale.shape[0]
    q, k, v = qkv.view(*qkv.shape[:2], 3, -1, width).unbind(2)
    return _rms(q, norm.query_norm.scale), _rms(k, norm.key_norm.scale), v


def _rms(x: Tensor, scale: nn.Parameter) -> Tensor:
    return (
        x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + NORM_EPS).to(x.dtype) * scale.to(x.dtype)
    )


def _attend(q: Tensor, k: Tensor, v: Tensor, rotation: tuple[Tensor, Tensor], stands_for: Tensor) -> Tensor:
    """Attention over heads [n, tokens, heads, head_dim]; returns [n, tokens, width]."""
    q, k, v = (heads.transpose(1, 2) for heads in (_rotate(q, rotation), _rotate(k, rotation), v))
    # Spelled out: on a CPU the backward pass of the fused one takes three times as long at these lengths.
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + stands_for.to(q.dtype)
    return (torch.softmax(logits, dim=-1) @ v).transpose(1, 2).flatten(2)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate adjacent pairs."""
    cos, sin = (part.unsqueeze(2).to(x.dtype) for part in rotation)
    even, odd = x.view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
