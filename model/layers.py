"""The blocks of the FLUX.1 transformer on rows: linears, modulation, double and single stream blocks.

Parameter names are those of the original checkpoint, so that layout needs no map. The formulas are those of
black-forest-labs/flux, src/flux/modules/layers.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import reference as ops
from model.config import TransformerConfig
from model.layout import Layout, Stream


class Modulation(NamedTuple):
    """Shift, scale and gate of one branch, each [samples, width]."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def linear(layer: nn.Linear, x: Tensor, stream: Stream) -> Tensor:
    """Apply `layer` to the rows of `stream`."""
    return ops.linear(x, layer.weight, layer.bias, stream.products)


class MLPEmbedder(nn.Module):
    """Linear, SiLU, Linear: of the time, guidance and pooled text vectors."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_width, width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [n, in_width] to [n, width]."""
        embedded: Tensor = self.out_layer(F.silu(self.in_layer(x)))
        return embedded


class ModulationLinear(nn.Module):
    """The linear that turns a sample's vector into `parts` modulation vectors."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, parts * width)


class NormScale(nn.Module):
    """The weight of an RMS norm over one head."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(head_dim))


class QKNorm(nn.Module):
    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.query_norm = NormScale(head_dim)
        self.key_norm = NormScale(head_dim)

    def forward(self, qkv: Tensor, stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """Split packed `qkv` [rows, 3 * width] into normalised, rotated q and k and plain v."""
        return ops.qk_norm_rope(qkv, self.query_norm.scale, self.key_norm.scale, stream.cos, stream.sin)


class StreamAttention(nn.Module):
    """One stream's projections into and out of the joint attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.norm = QKNorm(config.head_dim)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def heads(self, x: Tensor, stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v [rows, heads, head_dim] of this stream's rows."""
        q, k, v = self.norm(linear(self.qkv, x, stream), stream)
        return q, k, v


def mlp(config: TransformerConfig) -> nn.Sequential:
    """The two linears that the checkpoint calls 0 and 2; the GELU between them has no weights."""
    return nn.Sequential(
        nn.Linear(config.hidden_size, config.mlp_size),
        nn.GELU(approximate="tanh"),
        nn.Linear(config.mlp_size, config.hidden_size),
    )


class DoubleStreamBlock(nn.Module):
    """Image and text rows with their own weights, meeting in one attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.img_mod = ModulationLinear(config.hidden_size, 6)
        self.img_attn = StreamAttention(config)
        self.img_mlp = mlp(config)
        self.txt_mod = ModulationLinear(config.hidden_size, 6)
        self.txt_attn = StreamAttention(config)
        self.txt_mlp = mlp(config)

    def forward(
        self, img: Tensor, txt: Tensor, img_mod: Tensor, txt_mod: Tensor, layout: Layout
    ) -> tuple[Tensor, Tensor]:
        """Advance image and text rows by one block.

        Args:
            img: [img_rows, width].
            txt: [txt_rows, width].
            img_mod, txt_mod: [samples, 6 * width]; shift, scale, gate of the attention, then of the MLP.
        """
        img_attn_mod, img_mlp_mod = _branches(img_mod)
        txt_attn_mod, txt_mlp_mod = _branches(txt_mod)

        img_heads = self.img_attn.heads(_modulate(img, img_attn_mod, layout.img), layout.img)
        txt_heads = self.txt_attn.heads(_modulate(txt, txt_attn_mod, layout.txt), layout.txt)
        q, k, v = (layout.join(*pair) for pair in zip(txt_heads, img_heads, strict=True))
        txt_attended, img_attended = layout.split(ops.attention(q, k, v, layout.joint.lengths))

        img = _add_gated(img, img_attn_mod, linear(self.img_attn.proj, img_attended, layout.img), layout.img)
        txt = _add_gated(txt, txt_attn_mod, linear(self.txt_attn.proj, txt_attended, layout.txt), layout.txt)
        img = _add_gated(img, img_mlp_mod, _mlp(self.img_mlp, img, img_mlp_mod, layout.img), layout.img)
        txt = _add_gated(txt, txt_mlp_mod, _mlp(self.txt_mlp, txt, txt_mlp_mod, layout.txt), layout.txt)
        return img, txt


class SingleStreamBlock(nn.Module):
    """Joint rows; attention and MLP side by side from one projection and into one projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.qkv_width = 3 * config.hidden_size
        self.modulation = ModulationLinear(config.hidden_size, 3)
        self.linear1 = nn.Linear(config.hidden_size, self.qkv_width + config.mlp_size)
        self.norm = QKNorm(config.head_dim)
        self.linear2 = nn.Linear(config.hidden_size + config.mlp_size, config.hidden_size)

    def forward(self, x: Tensor, mod: Tensor, stream: Stream) -> Tensor:
        """Advance the joint rows `x` [rows, width] by one block; `mod` is [samples, 3 * width]."""
        modulation = Modulation(*mod.chunk(3, dim=-1))
        projected = linear(self.linear1, _modulate(x, modulation, stream), stream)
        qkv, hidden = projected.tensor_split([self.qkv_width], dim=-1)
        q, k, v = self.norm(qkv, stream)
        attended = ops.attention(q, k, v, stream.lengths)
        both = torch.cat([attended, ops.gelu_tanh(hidden, stream.products)], dim=-1)  # attention first
        return _add_gated(x, modulation, linear(self.linear2, both, stream), stream)


class FinalLayer(nn.Module):
    """The last modulated norm and the projection to velocities."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(config.hidden_size, 2 * config.hidden_size)
        )
        self.linear = nn.Linear(config.hidden_size, config.in_channels)

    def forward(self, x: Tensor, mod: Tensor, stream: Stream) -> Tensor:
        """Map rows [rows, width] to velocities [rows, in_channels]; `mod` is [samples, shift | scale]."""
        shift, scale = mod.chunk(2, dim=-1)
        return linear(self.linear, ops.modulated_norm(x, shift, scale, stream.lengths), stream)


def _branches(mod: Tensor) -> tuple[Modulation, Modulation]:
    vectors = mod.chunk(6, dim=-1)
    return Modulation(*vectors[:3]), Modulation(*vectors[3:])


def _modulate(x: Tensor, mod: Modulation, stream: Stream) -> Tensor:
    return ops.modulated_norm(x, mod.shift, mod.scale, stream.lengths)


def _add_gated(x: Tensor, mod: Modulation, y: Tensor, stream: Stream) -> Tensor:
    return ops.gated_residual(x, mod.gate, y, stream.lengths)


def _mlp(layers: nn.Sequential, x: Tensor, mod: Modulation, stream: Stream) -> Tensor:
    up, _, down = layers
    assert isinstance(up, nn.Linear), "an MLP is Linear, GELU, Linear"
    assert isinstance(down, nn.Linear), "an MLP is Linear, GELU, Linear"
    hidden = linear(up, _modulate(x, mod, stream), stream)
    return linear(down, ops.gelu_tanh(hidden, stream.products), stream)
