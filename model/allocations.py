"""What code would allocate on a CUDA device, counted on a machine without one.

The code runs on tensors of the meta device, which have shapes and storages but no memory. A storage counts
from the operation that makes it until nothing refers to it. What an operation allocates inside its kernel and
gives back there (the workspaces of cuDNN and cuBLAS) does not show.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDING_BYTES = 512  # of CUDA's caching allocator: kMinBlockSize in c10/cuda/CUDACachingAllocator

aten = torch.ops.aten


class Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages that are made while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self._peak_bytes = 0
        self._counted: set[int] = set()

    def take_peak(self) -> int:
        """Return the most bytes that lived at once since the last call."""
        peak_bytes, self._peak_bytes = self._peak_bytes, self.live_bytes
        return peak_bytes

    def __torch_dispatch__(
        self,
        func: OpOverload[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Run an operation and count what it makes."""
        kwargs = kwargs or {}
        known = {_storage_id(tensor) for tensor in _meta_tensors((args, kwargs))}
        result = self._run(func, args, kwargs)
        for tensor in _meta_tensors(result):
            if _storage_id(tensor) not in known | self._counted:
                self._count(tensor)
        return result

    def _run(self, func: OpOverload[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """Run an operation, in its parts if it has any, and as CUDA would where meta does otherwise."""
        if func is aten.scaled_dot_product_attention.default:
            return self._attention(*args[:3])
        if func in (aten._local_scalar_dense.default, aten.is_nonzero.default) and args[0].is_meta:
            return True  # only whether all pixels are finite is ever asked
        if func is aten._to_copy.default and args[0].is_meta and kwargs.get("device") == torch.device("cpu"):
            return torch.empty(args[0].shape, dtype=args[0].dtype)
        if func is aten.convolution.default:
            return _convolution(func, args, kwargs)
        if torch._C.DispatchKey.CompositeImplicitAutograd in func.py_kernels:
            return func(*args, **kwargs)  # its parts in Python are others than in C++: dropout would copy
        with self:
            result = func.decompose(*args, **kwargs)
        return func(*args, **kwargs) if result is NotImplemented else result

    def _attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Allocate what CUDA's fused attentions do: for each row its result and the logarithm of its sum."""
        with self:
            sums = q.new_empty(q.shape[:-1], dtype=torch.float32)  # held until the result is there too
            attended = q.new_empty(*sums.shape, v.shape[-1])
        return attended

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        size_bytes = -(-storage.nbytes() // ROUNDING_BYTES) * ROUNDING_BYTES
        self._counted.add(storage._cdata)
        self.live_bytes += size_bytes
        self._peak_bytes = max(self._peak_bytes, self.live_bytes)
        weakref.finalize(storage, self._forget, storage._cdata, size_bytes).atexit = False

    def _forget(self, storage_id: int, size_bytes: int) -> None:
        self._counted.discard(storage_id)
        self.live_bytes -= size_bytes


def _meta_tensors(values: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_meta]


def _storage_id(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _convolution(func: OpOverload[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A convolution whose result is channels-last if its input or weight is, as cuDNN's."""
    result: Tensor = func(*args, **kwargs)
    channels_last = any(
        each.is_contiguous(memory_format=torch.channels_last) and not each.is_contiguous()
        for each in args[:2]
    )
    return result.to(memory_format=torch.channels_last) if channels_last else result
