"""Rows in eight bits: e4m3 values with one scale a row, and what the compute units make of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
FLOAT8_UNITS = (8, 9)  # the first compute capability whose matrix units take e4m3
MULTIPLE = 16  # of both sides of a weight: what the vendor's product takes


@dataclass(frozen=True, slots=True)
class Quantized:
    """Rows [rows, width] as `values` (e4m3) times `scale` [rows, 1], float32, powers of two.

    A power of two changes no digit of a value, so weights that are stored in e4m3 without a scale stay as
    they are, and every implementation finds the same bits.
    """

    values: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> "Quantized":
        return Quantized(self.values[rows], self.scale[rows])

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the rows as [rows, width] in `dtype`; bfloat16 holds every product exactly."""
        return (self.values.to(torch.bfloat16) * self.scale.to(torch.bfloat16)).to(dtype)


Rows = Tensor | Quantized


def multiplies_float8(device: torch.device) -> bool:
    """Whether the device's matrix units take e4m3; a CPU stands in for one that does."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= FLOAT8_UNITS
