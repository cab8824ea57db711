"""The FLUX.1 rectified-flow transformer: from noisy latents, text and time to a velocity.

Rows in, rows out (see model/layout.py); it knows no batch, no seed and no schedule. What is the same in
every step of a request (text projection, modulation vectors of all its steps) is asked for once.
"""

import math
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.ops import Ops, reference_ops
from kernels.rows import Span
from kernels.updates import Update, Updates
from model.config import TransformerConfig
from model.layers import (
    MLP,
    Changes,
    DoubleStreamBlock,
    FinalLayer,
    MLPEmbedder,
    NextNorm,
    OnRows,
    SingleStreamBlock,
    StreamAttention,
    plainly,
)
from model.layout import Layout, StreamName
from model.quantization import Linear, Quantization, quantize_linears

SINUSOID_WIDTH = 256
UNCHANGED: Changes = {}


class Transformer(OnRows):
    """Parameters carry the names and shapes of the original checkpoint (`flux1-schnell.safetensors`)."""

    def __init__(self, config: TransformerConfig, ops: Ops | None = None) -> None:
        """Build it on `ops`, by default the reference."""
        ops = ops or reference_ops()
        super().__init__(ops)
        width = config.hidden_size
        self.config = config
        self.img_in = nn.Linear(config.in_channels, width)
        self.txt_in = nn.Linear(config.text_width, width)
        self.time_in = MLPEmbedder(SINUSOID_WIDTH, width)
        self.vector_in = MLPEmbedder(config.pooled_width, width)
        if config.guidance_embed:
            self.guidance_in = MLPEmbedder(SINUSOID_WIDTH, width)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(config, ops) for _ in range(config.depth_double))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(config, ops) for _ in range(config.depth_single))
        self.final_layer = FinalLayer(config)

    def forward(self, img: Tensor, txt: Tensor, modulation: Tensor, layout: Layout) -> Tensor:
        """Return the velocity of every image row.

        Args:
            img: [img_rows, in_channels], packed noisy latents of all samples.
            txt: [txt_rows, width], projected text (`project_text`) of all samples.
            modulation: [samples, modulation width] (`modulate`), each sample's row of its current step.
            layout: whose rows these are.

        Returns:
            [img_rows, in_channels].
        """
        blocks, mods = list(self._blocks()), list(self._modulations(modulation))
        takes_quantized = [*(block.takes_quantized for block in blocks), False]
        first, *following = (
            NextNorm.first_of(mod, self.config.hidden_size, quantized=quantized)
            for mod, quantized in zip(mods, takes_quantized, strict=True)
        )
        x = torch.cat([txt, self.linear(self.img_in, img, layout.img)])
        shift, scale, quantized = first
        normed = self.ops.modulated_norm(x, shift, scale, layout.owners, quantized=quantized)
        for block, mod, norm in zip(blocks, mods[:-1], following, strict=True):
            normed = block(x, normed, mod, norm, layout)
        return self.linear(self.final_layer.linear, layout.img.span.of(normed), layout.img)

    def quantize(self, quantization: Quantization) -> None:
        """Have the linears of the blocks quantise what will be loaded into them."""
        if quantization is not Quantization.NONE:
            for module in self.modules():
                if isinstance(module, StreamAttention | MLP | SingleStreamBlock):
                    quantize_linears(module, quantization)

    def project_text(self, txt: Tensor, changes: Changes = UNCHANGED) -> Tensor:
        """Map one prompt's T5 states [rows, text_width] to [rows, width]."""
        return self._apply_changed(changes, self.txt_in, txt)

    def modulate(
        self, sigmas: Tensor, pooled: Tensor, guidance: float | None, changes: Changes = UNCHANGED
    ) -> Tensor:
        """Return the modulation vectors of all blocks for every step of one request.

        Args:
            sigmas: [steps], float32, the time of each step.
            pooled: [pooled_width], CLIP's vector.
            guidance: the embedded guidance, None for weights without that embedding.
            changes: of the layers, by the adapters of the request.

        Returns:
            [steps, modulation width]: per double block image then text (6 * width each), per single block
            3 * width, and the final layer's shift and scale.
        """
        apply = partial(self._apply_changed, changes)
        vec = self.time_in(self._sinusoid(sigmas), apply)
        if guidance is not None:
            vec = vec + self.guidance_in(self._sinusoid(torch.full_like(sigmas, guidance)), apply)
        vec = F.silu(vec + self.vector_in(pooled.unsqueeze(0), apply))
        return torch.cat([apply(layer, vec) for layer in self._modulation_layers()], dim=-1)

    def step_linears(self) -> Iterator[tuple[StreamName, Linear]]:
        """Yield the linears that `forward` applies, each with the stream whose rows it takes."""
        yield "img", self.img_in
        for block in self._blocks():
            if isinstance(block, DoubleStreamBlock):
                for layer in (block.txt_attn.qkv, block.txt_attn.proj, *block.txt_mlp.linears()):
                    yield "txt", layer
                for layer in (block.img_attn.qkv, block.img_attn.proj, *block.img_mlp.linears()):
                    yield "img", layer
            else:
                yield "joint", block.linear1
                yield "joint", block.linear2
        yield "img", self.final_layer.linear

    def _apply_changed(self, changes: Changes, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply a layer outside of the steps to rows of one sample, with what its adapters change of it."""
        out = plainly(layer, x)
        if own := changes.get(layer):
            rows = Span(0, len(x))
            updates = Updates.build([Update(rows, change) for change in own], x.device)
            self.ops.low_rank_add(x, updates, out)
        return out

    def _blocks(self) -> Iterator[DoubleStreamBlock | SingleStreamBlock]:
        for block in (*self.double_blocks, *self.single_blocks):
            assert isinstance(block, DoubleStreamBlock | SingleStreamBlock), "these lists hold nothing else"
            yield block

    def _modulation_layers(self) -> Iterator[nn.Module]:
        for block in self._blocks():
            if isinstance(block, DoubleStreamBlock):
                yield from (block.img_mod.lin, block.txt_mod.lin)
            else:
                yield block.modulation.lin
        yield self.final_layer.adaLN_modulation[1]

    def _sinusoid(self, t: Tensor) -> Tensor:
        dtype = self.img_in.weight.dtype
        return sinusoid(scaled_time(t, dtype)).to(dtype)

    def _modulations(self, modulation: Tensor) -> Iterator[Tensor]:
        """Yield the vectors [owners, ...] of every block and of the final layer, image rows before text rows.

        Double blocks modulate the two streams by vectors of their own, all that follows by the same.
        """
        samples, width, config = len(modulation), self.config.hidden_size, self.config
        sizes = [config.depth_double * 12 * width, config.depth_single * 3 * width, 2 * width]
        doubles, singles, final = torch.split(modulation, sizes, dim=1)
        by_stream = doubles.view(samples, config.depth_double, 2, 6 * width).permute(1, 2, 0, 3)
        yield from by_stream.reshape(config.depth_double, 2 * samples, 6 * width)
        yield from torch.split(singles.repeat(2, 1), 3 * width, dim=1)
        yield final.repeat(2, 1)


def scaled_time(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `1000 * t`, rounded to the model's dtype, in float32.

    In bfloat16 750 becomes 752: both published implementations do this, so the published pictures have it.
    """
    return (t * 1000).to(dtype).float()


def sinusoid(y: Tensor) -> Tensor:
    """Return `[cos(y f), sin(y f)]` [n, 256] of `y` [n], with `f_j = 10000 ** (-j / 128)`, all in float32."""
    half = SINUSOID_WIDTH // 2
    frequencies = torch.exp(
        -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=y.device) / half
    )
    angles = y[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
