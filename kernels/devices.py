"""What a kernel has to know of the device that it runs on, or is compiled for."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Target:
    """A device: its compute capability, and how many programs run side by side."""

    capability: tuple[int, int]
    multiprocessors: int

    @property
    def has_descriptors(self) -> bool:
        """Whether it reads tiles of tensors through descriptors: from Hopper on."""
        return self.capability >= (9, 0)


INTERPRETER = Target((0, 0), 3)  # few programs, so that every one takes several tiles
_simulated = ContextVar("simulated", default=INTERPRETER)


def target(device: torch.device) -> Target:
    """Return what `device` is; where it is no GPU, what is simulated, else the interpreter."""
    return _real(device) if device.type == "cuda" else _simulated.get()


def takes_descriptors(device: Target, *tensors: Tensor) -> bool:
    """Whether these are read through descriptors: rows of whole 16 bytes at 16-byte addresses.

    The descriptors are made by the kernel itself, which wants memory for them: torch's.
    """
    aligned = all((x.stride(0) * x.element_size()) % 16 == 0 and x.data_ptr() % 16 == 0 for x in tensors)
    if device.has_descriptors and aligned:
        triton.set_allocator(_scratch)
        return True
    return False


def _scratch(size: int, alignment: int, stream: int | None) -> Tensor:
    return torch.empty(size, dtype=torch.int8, device="cuda")


@contextmanager
def simulating(simulated: Target) -> Iterator[None]:
    """Let everything that is no GPU stand for this target."""
    token = _simulated.set(simulated)
    try:
        yield
    finally:
        _simulated.reset(token)


@lru_cache
def _real(device: torch.device) -> Target:
    properties = torch.cuda.get_device_properties(device)
    return Target((properties.major, properties.minor), properties.multi_processor_count)
