"""The blocks of the FLUX.1 transformer on rows: linears, modulation, double and single stream blocks.

A block ends with the norm of what follows it, so that the residual is read and written once in between.

Parameter names are those of the original checkpoint, so that layout needs no map. The formulas are those of
black-forest-labs/flux, src/flux/modules/layers.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.ops import Ops
from model.config import TransformerConfig
from model.layout import Layout, Stream


class OnRows(nn.Module):
    """A module that runs on rows, by the operations it was built with."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self.ops = ops

    def linear(self, layer: nn.Linear, x: Tensor, stream: Stream) -> Tensor:
        """Apply `layer` to the rows of `stream`."""
        return self.ops.linear(x, layer.weight, layer.bias, stream.products, None)

    def linear_by_stream(
        self, txt_layer: nn.Linear, img_layer: nn.Linear, x: Tensor, layout: Layout, *, gelu: bool = False
    ) -> Tensor:
        """Apply its own layer to the rows of each stream, into one tensor."""
        linear = self.ops.linear_gelu if gelu else self.ops.linear
        out = x.new_empty(len(x), img_layer.out_features)
        for layer, stream in ((txt_layer, layout.txt), (img_layer, layout.img)):
            rows, slot = stream.span.of(x), stream.span.of(out)
            linear(rows, layer.weight, layer.bias, stream.products, slot)
        return out

    def norm_and_turn(self, norm: "QKNorm", qkv: Tensor, stream: Stream) -> None:
        """Norm and rotate q and k in the rows of `stream` [rows, 3 * width], in place."""
        self.ops.qk_norm_rope(qkv, norm.query_norm.scale, norm.key_norm.scale, stream.cos, stream.sin)

    def modulated_norm(self, x: Tensor, mod: Tensor, layout: Layout) -> Tensor:
        """Norm `x` [rows, width]; `mod` [owners, ...] begins with shift and scale."""
        shift, scale, *_ = vectors(mod, x.shape[1])
        return self.ops.modulated_norm(x, shift, scale, layout.owners)


def vectors(mod: Tensor, width: int) -> tuple[Tensor, ...]:
    """Cut `mod` [owners, n * width] into its n vectors."""
    return torch.split(mod, width, dim=1)


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

    def heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return views q, k, v [rows, heads, head_dim] of packed `qkv` [rows, 3 * width]."""
        q, k, v = qkv.view(len(qkv), 3, -1, len(self.query_norm.scale)).unbind(1)
        return q, k, v


class StreamAttention(nn.Module):
    """One stream's projections into and out of the joint attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.norm = QKNorm(config.head_dim)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)


class MLP(nn.Sequential):
    """Two linears, which the checkpoint calls 0 and 2; the GELU between them has no weights."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(
            nn.Linear(config.hidden_size, config.mlp_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.mlp_size, config.hidden_size),
        )

    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        """Return the linear up and the linear down."""
        up, _, down = self
        assert isinstance(up, nn.Linear), "built so"
        assert isinstance(down, nn.Linear), "built so"
        return up, down


class DoubleStreamBlock(OnRows):
    """Image and text rows with their own weights, meeting in one attention."""

    def __init__(self, config: TransformerConfig, ops: Ops) -> None:
        super().__init__(ops)
        self.img_mod = ModulationLinear(config.hidden_size, 6)
        self.img_attn = StreamAttention(config)
        self.img_mlp = MLP(config)
        self.txt_mod = ModulationLinear(config.hidden_size, 6)
        self.txt_attn = StreamAttention(config)
        self.txt_mlp = MLP(config)

    def forward(self, x: Tensor, normed: Tensor, mod: Tensor, following: Tensor, layout: Layout) -> Tensor:
        """Advance the rows `x` by one block in place, and return them normed for what follows.

        Args:
            x: [rows, width].
            normed: [rows, width], `x` normed for this block.
            mod: [owners, 6 * width]: shift, scale, gate of the attention, then of the MLP.
            following: [owners, ...]: shift, scale and more of what follows.
            layout: whose rows these are.
        """
        _, _, gate, shift, scale, mlp_gate = vectors(mod, x.shape[1])
        next_shift, next_scale, *_ = vectors(following, x.shape[1])

        qkv = self.linear_by_stream(self.txt_attn.qkv, self.img_attn.qkv, normed, layout)
        for attn, stream in ((self.txt_attn, layout.txt), (self.img_attn, layout.img)):
            self.norm_and_turn(attn.norm, stream.span.of(qkv), stream)
        attended = self.ops.attention(*self.img_attn.norm.heads(qkv), layout.sequences, None)
        update = self.linear_by_stream(self.txt_attn.proj, self.img_attn.proj, attended, layout)
        normed = self.ops.gated_residual_norm(x, gate, update, shift, scale, layout.owners)

        (txt_up, txt_down), (img_up, img_down) = self.txt_mlp.linears(), self.img_mlp.linears()
        hidden = self.linear_by_stream(txt_up, img_up, normed, layout, gelu=True)
        update = self.linear_by_stream(txt_down, img_down, hidden, layout)
        return self.ops.gated_residual_norm(x, mlp_gate, update, next_shift, next_scale, layout.owners)


class SingleStreamBlock(OnRows):
    """All rows alike; attention and MLP side by side from one projection and into one projection."""

    def __init__(self, config: TransformerConfig, ops: Ops) -> None:
        super().__init__(ops)
        self.width = config.hidden_size
        self.modulation = ModulationLinear(config.hidden_size, 3)
        self.linear1 = nn.Linear(config.hidden_size, 3 * config.hidden_size + config.mlp_size)
        self.norm = QKNorm(config.head_dim)
        self.linear2 = nn.Linear(config.hidden_size + config.mlp_size, config.hidden_size)

    def forward(self, x: Tensor, normed: Tensor, mod: Tensor, following: Tensor, layout: Layout) -> Tensor:
        """Advance the rows `x` by one block in place, and return them normed for what follows.

        As `DoubleStreamBlock.forward`, with `mod` [owners, 3 * width].
        """
        _, _, gate = vectors(mod, self.width)
        next_shift, next_scale, *_ = vectors(following, self.width)

        projected = self.linear(self.linear1, normed, layout.joint)
        qkv, hidden = projected.tensor_split([3 * self.width], dim=1)
        self.norm_and_turn(self.norm, qkv, layout.joint)
        both = x.new_empty(len(x), self.linear2.in_features)  # attention first
        self.ops.attention(*self.norm.heads(qkv), layout.sequences, both[:, : self.width])
        self.ops.gelu_tanh(hidden, layout.joint.products, both[:, self.width :])
        update = self.linear(self.linear2, both, layout.joint)
        return self.ops.gated_residual_norm(x, gate, update, next_shift, next_scale, layout.owners)


class FinalLayer(nn.Module):
    """The last modulation and the projection to velocities."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(config.hidden_size, 2 * config.hidden_size)
        )
        self.linear = nn.Linear(config.hidden_size, config.in_channels)
