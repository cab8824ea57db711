"""A linear in eight bits: half the memory, and twice the rate where there are units for it.

The linears of the blocks hold 8.6 of the 11.9 billion parameters of FLUX.1 and nearly all of its arithmetic.
Their weights are stored in e4m3 with a scale for every output (see kernels/float8.py), made while they are
loaded; their inputs are quantised row by row in the kernel that computes them. Modulation, embeddings and
the final layer stay as they are. On a GPU without units for e4m3 only the weights are quantised.
"""

from enum import Enum, auto
from typing import Literal

import torch
from torch import Tensor, nn

from kernels.float8 import MULTIPLE, Quantized, multiplies_float8
from kernels.reference import quantize

QuantizeName = Literal["none", "fp8"]


class Quantization(Enum):
    """What the blocks' linears hold in e4m3."""

    NONE = auto()
    WEIGHTS = auto()
    WEIGHTS_AND_INPUTS = auto()


def choose_quantization(name: QuantizeName, *, device: torch.device, dtype: torch.dtype) -> Quantization:
    """Return what `name` means on a device; raises `ValueError` for a dtype that no product gives."""
    if name == "none":
        return Quantization.NONE
    if not multiplies_float8(device):
        return Quantization.WEIGHTS
    if device.type == "cuda" and dtype != torch.bfloat16:
        raise ValueError(f"quantize fp8 with dtype {dtype} on {device}; allowed: dtype bfloat16")
    return Quantization.WEIGHTS_AND_INPUTS


class QuantizedLinear(nn.Module):
    """A linear whose weight [out, in] is in e4m3, one scale [out, 1] for each output.

    `inputs`: whether its input is quantised too, or its weight brought back to the input's dtype.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear, *, inputs: bool) -> None:
        """Take the place of `linear`, into which nothing has been loaded yet."""
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.inputs = inputs
        self.weight = linear.weight
        self.bias = linear.bias
        scale = torch.empty(linear.out_features, 1, dtype=torch.float32, device=linear.weight.device)
        self.register_buffer("scale", scale, persistent=False)  # no checkpoint has it

    def take(self, weight: Tensor) -> None:
        """Keep `weight` [out, in] quantised."""
        rows = quantize(weight)
        self.weight = nn.Parameter(rows.values, requires_grad=False)
        self.scale = rows.scale

    @property
    def rows(self) -> Quantized:
        return Quantized(self.weight, self.scale)


Linear = nn.Linear | QuantizedLinear


def quantize_linears(parent: nn.Module, quantization: Quantization) -> None:
    """Put quantised linears in place of those that `parent` itself holds, if their sides allow it."""
    for name, child in parent.named_children():
        if isinstance(child, nn.Linear) and not (
            child.in_features % MULTIPLE or child.out_features % MULTIPLE
        ):
            inputs = quantization is Quantization.WEIGHTS_AND_INPUTS
            setattr(parent, name, QuantizedLinear(child, inputs=inputs))
