"""The blocks of the FLUX.1 transformer on rows: linears, modulation, double and single stream blocks.

A block ends with the norm of what follows it, so that the residual is read and written once in between.

Parameter names are those of the original checkpoint, so that layout needs no map. The formulas are those of
black-forest-labs/flux, src/flux/modules/layers.py.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.float8 import Quantized, Rows
from kernels.ops import Ops
from kernels.rows import spans
from kernels.updates import LowRank, Updates
from model.config import TransformerConfig
from model.layout import Layout, Stream
from model.quantization import Linear, QuantizedLinear


class NextNorm(NamedTuple):
    """The modulated norm that a block or the final layer begins with: shift and scale [owners, width].

    `quantized`: whether its linears take the normed rows quantised.
    """

    shift: Tensor
    scale: Tensor
    quantized: bool

    @classmethod
    def first_of(cls, mod: Tensor, width: int, *, quantized: bool) -> "NextNorm":
        """Of modulation vectors [owners, ...] that begin with its shift and scale."""
        shift, scale, *_ = vectors(mod, width)
        return cls(shift, scale, quantized)


Projections = Sequence[tuple[Linear, Stream]]  # each stream with its layer; together they have all rows
Changes = Mapping[nn.Module, Sequence[LowRank]]  # what the adapters of one sample change, by layer
Apply = Callable[[nn.Module, Tensor], Tensor]  # of a layer to rows


class OnRows(nn.Module):
    """A module that runs on rows, by the operations it was built with."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self.ops = ops

    def linear(self, layer: Linear, x: Rows, stream: Stream, out: Tensor | None = None) -> Tensor:
        """Apply `layer`, with what adapters add to it, to the rows of `stream`."""
        out = self._product(layer, x, stream, out)
        if (updates := stream.updates.get(layer)) is not None:
            rows = x.dequantized(out.dtype) if isinstance(x, Quantized) else x
            self.ops.low_rank_add(rows, updates, out)
        return out

    def _product(self, layer: Linear, x: Rows, stream: Stream, out: Tensor | None) -> Tensor:
        if isinstance(layer, QuantizedLinear) and layer.inputs:
            rows = x if isinstance(x, Quantized) else self.ops.quantize(x)
            return self.ops.quantized_linear(rows, layer.rows, layer.bias, stream.products, out)
        assert isinstance(x, Tensor), "rows are quantised for layers that take them so"
        return self.ops.linear(x, weight_of(layer, x.dtype), layer.bias, stream.products, out)

    def project(self, projections: Projections, x: Rows) -> Tensor:
        """Apply its own layer to the rows of each stream, into one tensor."""
        layer, _ = projections[0]
        out = layer.bias.new_empty(len(x), layer.out_features)
        for layer, stream in projections:
            self.linear(layer, stream.span.of(x), stream, stream.span.of(out))
        return out

    def project_gelu(self, projections: Projections, x: Rows, layout: Layout) -> Rows:
        """Apply its own layer and a GELU to the rows of each stream; quantised if the input is."""
        if isinstance(x, Quantized):
            return self.ops.quantized_gelu(self.project(projections, x), layout.joint.products, None)
        layer, _ = projections[0]
        out = x.new_empty(len(x), layer.out_features)
        for layer, stream in projections:
            rows, slot, weight = stream.span.of(x), stream.span.of(out), weight_of(layer, x.dtype)
            if (updates := stream.updates.get(layer)) is None:
                self.ops.linear_gelu(rows, weight, layer.bias, stream.products, slot)
            else:
                self._adapted_gelu(rows, weight, layer.bias, stream, updates, slot)
        return out

    def _adapted_gelu(
        self, x: Tensor, weight: Tensor, bias: Tensor, stream: Stream, updates: Updates, out: Tensor
    ) -> None:
        """Apply a layer, its updates and a GELU; products without updates run as they do without company."""
        products = spans(stream.products)
        adapted = [span for span in products if updates.touch(span)]
        for span in products:
            product = self.ops.linear if span in adapted else self.ops.linear_gelu
            product(span.of(x), weight, bias, (span.rows,), span.of(out))
        self.ops.low_rank_add(x, updates, out)
        for span in adapted:
            self.ops.gelu_tanh(span.of(out), (span.rows,), span.of(out))

    def project_add_norm(
        self, x: Tensor, gate: Tensor, projections: Projections, rows: Rows, norm: NextNorm, layout: Layout
    ) -> Rows:
        """Add the gated projection of `rows` to `x` in place, and return `x` normed for what follows.

        The sum is made with the norm; where products are ours and nothing comes between, with the product.
        """
        shift, scale, quantized = norm
        add_product = self.ops.linear_residual
        if add_product is None or any(
            isinstance(layer, QuantizedLinear) or layer in stream.updates for layer, stream in projections
        ):
            update, add = self.project(projections, rows), self.ops.gated_residual_norm
            return add(x, gate, update, shift, scale, layout.owners, quantized=quantized)
        assert isinstance(rows, Tensor), "rows are quantised for layers that take them so"
        for layer, stream in projections:
            span, weight = stream.span, weight_of(layer, rows.dtype)
            owner = span.of(layout.owners.by_row)
            add_product(span.of(x), gate, owner, span.of(rows), weight, layer.bias, stream.products)
        return self.ops.modulated_norm(x, shift, scale, layout.owners, quantized=quantized)

    def norm_and_turn(self, norm: "QKNorm", qkv: Tensor, stream: Stream) -> None:
        """Norm and rotate q and k in the rows of `stream` [rows, 3 * width], in place."""
        self.ops.qk_norm_rope(qkv, norm.query_norm.scale, norm.key_norm.scale, stream.cos, stream.sin)


def vectors(mod: Tensor, width: int) -> tuple[Tensor, ...]:
    """Cut `mod` [owners, n * width] into its n vectors."""
    return torch.split(mod, width, dim=1)


def plainly(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a layer as it is."""
    out: Tensor = layer(x)
    return out


def weight_of(layer: Linear, dtype: torch.dtype) -> Tensor:
    """Return the weight [out, in] of a layer in `dtype`, if need be brought back from eight bits."""
    return layer.rows.dequantized(dtype) if isinstance(layer, QuantizedLinear) else layer.weight


class MLPEmbedder(nn.Module):
    """Linear, SiLU, Linear: of the time, guidance and pooled text vectors."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_width, width)
        self.out_layer = nn.Linear(width, width)

    def forward(self, x: Tensor, apply: Apply = plainly) -> Tensor:
        """Map [n, in_width] to [n, width]."""
        return apply(self.out_layer, F.silu(apply(self.in_layer, x)))


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

    @property
    def takes_quantized(self) -> bool:
        """Whether its rows come quantised."""
        return isinstance(self.qkv, QuantizedLinear) and self.qkv.inputs


class MLP(nn.Sequential):
    """Two linears, which the checkpoint calls 0 and 2; the GELU between them has no weights."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(
            nn.Linear(config.hidden_size, config.mlp_size),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.mlp_size, config.hidden_size),
        )

    def linears(self) -> tuple[Linear, Linear]:
        """Return the linear up and the linear down."""
        up, _, down = self
        assert isinstance(up, Linear), "built so"
        assert isinstance(down, Linear), "built so"
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

    @property
    def takes_quantized(self) -> bool:
        """Whether its rows come quantised."""
        return self.img_attn.takes_quantized

    def forward(self, x: Tensor, normed: Rows, mod: Tensor, following: NextNorm, layout: Layout) -> Rows:
        """Advance the rows `x` by one block in place, and return them normed for what follows.

        Args:
            x: [rows, width].
            normed: [rows, width], `x` normed for this block.
            mod: [owners, 6 * width]: shift, scale, gate of the attention, then of the MLP.
            following: the norm of what follows.
            layout: whose rows these are.
        """
        _, _, gate, shift, scale, mlp_gate = vectors(mod, x.shape[1])

        txt, img = layout.txt, layout.img

        qkv = self.project(((self.txt_attn.qkv, txt), (self.img_attn.qkv, img)), normed)
        for attn, stream in ((self.txt_attn, txt), (self.img_attn, img)):
            self.norm_and_turn(attn.norm, stream.span.of(qkv), stream)
        attended = self.ops.attention(*self.img_attn.norm.heads(qkv), layout.sequences, None)
        out = ((self.txt_attn.proj, txt), (self.img_attn.proj, img))
        own_norm = NextNorm(shift, scale, self.takes_quantized)
        normed = self.project_add_norm(x, gate, out, attended, own_norm, layout)

        (txt_up, txt_down), (img_up, img_down) = self.txt_mlp.linears(), self.img_mlp.linears()
        hidden = self.project_gelu(((txt_up, txt), (img_up, img)), normed, layout)
        down = ((txt_down, txt), (img_down, img))
        return self.project_add_norm(x, mlp_gate, down, hidden, following, layout)


class SingleStreamBlock(OnRows):
    """All rows alike; attention and MLP side by side from one projection and into one projection."""

    def __init__(self, config: TransformerConfig, ops: Ops) -> None:
        super().__init__(ops)
        self.width = config.hidden_size
        self.modulation = ModulationLinear(config.hidden_size, 3)
        self.linear1 = nn.Linear(config.hidden_size, 3 * config.hidden_size + config.mlp_size)
        self.norm = QKNorm(config.head_dim)
        self.linear2 = nn.Linear(config.hidden_size + config.mlp_size, config.hidden_size)

    @property
    def takes_quantized(self) -> bool:
        """Whether its rows come quantised."""
        return isinstance(self.linear1, QuantizedLinear) and self.linear1.inputs

    def forward(self, x: Tensor, normed: Rows, mod: Tensor, following: NextNorm, layout: Layout) -> Rows:
        """Advance the rows `x` by one block in place, and return them normed for what follows.

        As `DoubleStreamBlock.forward`, with `mod` [owners, 3 * width].
        """
        _, _, gate = vectors(mod, self.width)

        projected = self.linear(self.linear1, normed, layout.joint)
        qkv, hidden = projected.tensor_split([3 * self.width], dim=1)
        self.norm_and_turn(self.norm, qkv, layout.joint)
        both = self._attention_beside_mlp(qkv, hidden, layout)
        out = ((self.linear2, layout.joint),)
        return self.project_add_norm(x, gate, out, both, following, layout)

    def _attention_beside_mlp(self, qkv: Tensor, hidden: Tensor, layout: Layout) -> Rows:
        """Return the rows that `linear2` reads, [rows, width + mlp width], attention first."""
        heads, products = self.norm.heads(qkv), layout.joint.products
        if self.takes_quantized:
            attended = self.ops.attention(*heads, layout.sequences, None)
            return self.ops.quantized_gelu(hidden, products, attended)
        both = qkv.new_empty(len(qkv), self.linear2.in_features)
        self.ops.attention(*heads, layout.sequences, both[:, : self.width])
        self.ops.gelu_tanh(hidden, products, both[:, self.width :])
        return both


class FinalLayer(nn.Module):
    """The last modulation and the projection to velocities."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(
            nn.SiLU(), nn.Linear(config.hidden_size, 2 * config.hidden_size)
        )
        self.linear = nn.Linear(config.hidden_size, config.in_channels)
