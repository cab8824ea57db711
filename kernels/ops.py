"""One implementation of every operation, as a model holds them: the reference's, Triton's, or a mixture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Protocol

from torch import Tensor

from kernels import reference
from kernels.float8 import Quantized, Rows
from kernels.rows import Owners, Sequences
from kernels.updates import Updates

Attention = Callable[[Tensor, Tensor, Tensor, Sequences, Tensor | None], Tensor]
Linear = Callable[[Tensor, Tensor, Tensor, Sequence[int], Tensor | None], Tensor]

QuantizedLinear = Callable[[Quantized, Quantized, Tensor, Sequence[int], Tensor | None], Tensor]
LinearResidual = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Sequence[int]], None]
QkNormRope = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
GeluTanh = Callable[[Tensor, Sequence[int], Tensor | None], Tensor]

_TRITON = {
    "linear": "matmul",
    "linear_gelu": "matmul",
    "linear_residual": "matmul",
    "low_rank_add": "low_rank",
    "gelu_tanh": "activation",
    "quantize": "activation",
    "quantized_gelu": "activation",
    "quantized_linear": "reference",  # the vendor's product
    "rms_norm": "norm",
    "modulated_norm": "norm",
    "gated_residual_norm": "norm",
    "qk_norm_rope": "rotary",
    "attention": "attention",
    "group_norm_silu": "group_norm",
    "euler_step": "pictures",
    "to_pixels": "pictures",
}


class GroupNormSilu(Protocol):
    def __call__(
        self, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool
    ) -> Tensor: ...


class ModulatedNorm(Protocol):
    def __call__(
        self, x: Tensor, shift: Tensor, scale: Tensor, owners: Owners, *, quantized: bool = False
    ) -> Rows: ...


class GatedResidualNorm(Protocol):
    def __call__(
        self,
        x: Tensor,
        gate: Tensor,
        y: Tensor,
        shift: Tensor,
        scale: Tensor,
        owners: Owners,
        *,
        quantized: bool = False,
    ) -> Rows: ...


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of every operation of a step; kernels/reference.py says what each one does.

    `linear_residual` is there where products are ours: elsewhere the norm that follows makes the sum.
    """

    linear: Linear
    linear_gelu: Linear
    linear_residual: LinearResidual | None
    low_rank_add: Callable[[Tensor, Updates, Tensor], None]
    gelu_tanh: GeluTanh
    quantize: Callable[[Tensor], Quantized]
    quantized_gelu: Callable[[Tensor, Sequence[int], Tensor | None], Quantized]
    quantized_linear: QuantizedLinear
    rms_norm: Callable[[Tensor, Tensor], Tensor]
    modulated_norm: ModulatedNorm
    gated_residual_norm: GatedResidualNorm
    qk_norm_rope: QkNormRope
    attention: Attention
    group_norm_silu: GroupNormSilu
    euler_step: Callable[[Tensor, Tensor, Tensor, Owners], Tensor]
    to_pixels: Callable[[Tensor], Tensor]


def reference_ops() -> Ops:
    every = Ops(**{name: getattr(reference, name) for name in _TRITON})
    return replace(every, linear_residual=None)


def triton_ops() -> Ops:
    """Imported when they are chosen: a machine without Triton runs the reference."""
    modules: dict[str, ModuleType] = {
        file: import_module(f"kernels.{file}") for file in sorted(set(_TRITON.values()))
    }
    return Ops(**{name: getattr(modules[file], name) for name, file in _TRITON.items()})


def with_vendor_products(ops: Ops) -> Ops:
    """Return `ops` with the vendor's matrix products, for where rows may see each other."""
    with_gelu = partial(then_gelu, reference.linear, ops.gelu_tanh)
    return replace(ops, linear=reference.linear, linear_gelu=with_gelu, linear_residual=None)


def then_gelu(
    linear: Linear,
    gelu_tanh: GeluTanh,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    products: Sequence[int],
    out: Tensor | None,
) -> Tensor:
    """A `linear_gelu` of the two operations it is made of."""
    return gelu_tanh(linear(x, weight, bias, products, None), products, out)
