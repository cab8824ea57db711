"""Pickle checkpoints, for those who have nothing else: the only place that calls torch.load.

Opened only where `--allow-pickle` was given, and with `weights_only=True`: PyTorch then builds tensors and
refuses everything else.
"""

import pickle  # noqa: TID251 - only for the type of the error that torch.load raises
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from model.safetensors_file import DTYPES, CheckpointError, Reader, StoredTensor, is_plain_name

# 9,000 damaged files made torch.load raise KeyError, IndexError, TypeError, AssertionError, AttributeError
# and struct.error beside what it documents.
DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class PickledFile:
    """The tensors of a state dict; `metadata` is always empty."""

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    state: dict[str, Tensor]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Load a state dict, flat or under `state_dict`; raises `CheckpointError` for anything else."""
        try:
            # a file and not a path: by its name torch.load would take it for another format
            with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
                content = torch.load(file, map_location="cpu", weights_only=True)  # noqa: TID251
        except DAMAGED as error:
            reason = str(error).splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"{path}: is not a pickle of tensors: {reason}") from None
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]
        if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
            raise CheckpointError(f"{path}: is not a dictionary of tensors")
        state = {}
        for name, tensor in content.items():
            if not isinstance(name, str) or not is_plain_name(name) or not _is_plain(tensor):
                raise CheckpointError(f"{path}: {str(name)[:200]!r} is not the plain tensor of a state dict")
            state[name] = tensor.contiguous()
        tensors = {
            name: StoredTensor(name, tensor.dtype, tuple(tensor.shape), 0, tensor.nbytes)
            for name, tensor in state.items()
        }
        return cls(path=path, tensors=tensors, metadata={}, state=state)

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """The tensors are in memory already."""
        yield self

    def read_into(self, tensor: StoredTensor, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `tensor` from `offset` on."""
        stored = self.state[tensor.name].flatten().view(torch.uint8).numpy()
        buffer[:] = stored.data[offset : offset + len(buffer)]


def _is_plain(tensor: Tensor) -> bool:
    """Whether values lie in memory one after another; a view that repeats one value could claim terabytes."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in DTYPES.values()
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )
