"""The part of the starting noise that decides what a prompt leaves open.

The flow starts from standard normal noise, 64 channels for each token. The first five channels of the first
token decide what holds for the whole picture; the means of four groups of 16 channels decide the small
things (stars, waves, flowers) inside each token's own patch. All are standard normal themselves, so noise
drawn around a given chance is as good as any other.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CHANNELS = 64
GRAINS = 4
_GROUP = CHANNELS // GRAINS
_WHOLE = 5


@dataclass(frozen=True, slots=True)
class Chance:
    """`whole` [5] and `grain` [rows, columns, 4], float32, standard normal."""

    whole: NDArray[np.float32]
    grain: NDArray[np.float32]

    @classmethod
    def draw(cls, rng: np.random.Generator, rows: int, columns: int) -> Self:
        return cls(
            rng.standard_normal(_WHOLE, dtype=np.float32),
            rng.standard_normal((rows, columns, GRAINS), dtype=np.float32),
        )

    @classmethod
    def of_noise(cls, noise: Tensor, rows: int, columns: int) -> Self:
        """Read the chance out of noise [rows * columns, 64]."""
        groups = noise.float().view(rows, columns, GRAINS, _GROUP)
        return cls(noise[0, :_WHOLE].float().numpy(), (groups.mean(-1) * math.sqrt(_GROUP)).numpy())

    @property
    def right(self) -> float:
        return self._uniform(0)

    @property
    def down(self) -> float:
        return self._uniform(1)

    @property
    def growth(self) -> float:
        return self._uniform(2)

    @property
    def turn(self) -> float:
        return self._uniform(3)

    @property
    def light(self) -> float:
        return self._uniform(4)

    def _uniform(self, index: int) -> float:
        """In [-1, 1], evenly spread."""
        return math.erf(float(self.whole[index]) / math.sqrt(2))


def noise_around(whole: Tensor, grain: Tensor, free: Tensor, is_first: Tensor) -> Tensor:
    """Move standard normal `free` [n, tokens, 64] to agree with the chance of its pictures.

    Args:
        whole: [n, 5].
        grain: [n, tokens, 4].
        is_first: [n, tokens], which token is its picture's first; the others' first channels stay.
    """
    groups = free.view(*free.shape[:-1], GRAINS, _GROUP)
    moved = groups - groups.mean(-1, keepdim=True) + grain.unsqueeze(-1) / math.sqrt(_GROUP)
    noise = moved.flatten(-2)
    first = torch.cat([whole.unsqueeze(1).expand(-1, free.shape[1], -1), free[..., _WHOLE:]], dim=-1)
    return torch.where(is_first.unsqueeze(-1), first, noise)
