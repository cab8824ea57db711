"""Host memory for weights that are copied to a device again and again.

Copies that run beside the device's work need page-locked memory, and torch rounds every page-locked
allocation up to a power of two (ATen/core/CachingHostAllocator.h): T5's matrices of 84 MB would take 134 MB
each. So whole blocks of a power of two are allocated, and tensors are cut from them.
"""

import math
from threading import Lock

import torch
from torch import Tensor

BLOCK_BYTES = 256 << 20  # T5's largest tensor in bfloat16, its embedding, has 251 MiB
ALIGNMENT = 64


class Arena:
    """Hands out tensors, to any thread; a block lives as long as one of its tensors."""

    def __init__(self, *, pinned: bool) -> None:
        """`pinned`: page-locked, which needs a CUDA device."""
        self.pinned = pinned
        self._blocks: list[Tensor] = []  # each [bytes], uint8
        self._used: list[int] = []  # bytes of each
        self._cutting = Lock()

    @property
    def size_bytes(self) -> int:
        """What was allocated, the ends of blocks that no tensor fits into included."""
        return sum(block.nbytes for block in self._blocks)

    def empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Cut a tensor without values from the first block that has room for it."""
        with self._cutting:
            return self._empty(shape, dtype)

    def _empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        size = math.prod(shape) * dtype.itemsize
        number = next((n for n, block in enumerate(self._blocks) if self._used[n] + size <= block.nbytes), -1)
        if number < 0:
            whole = max(BLOCK_BYTES, 1 << (size - 1).bit_length())
            self._blocks.append(torch.empty(whole, dtype=torch.uint8, pin_memory=self.pinned))
            self._used.append(0)
        first = self._used[number]
        self._used[number] = first + -(-size // ALIGNMENT) * ALIGNMENT
        return self._blocks[number][first : first + size].view(dtype).view(shape)
