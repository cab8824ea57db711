"""The matrix products of a float32 model on an x86 CPU, by oneDNN.

PyTorch has it in every build for x86, yet gives it float32 products only in compiled graphs, and all others
to MKL, which leaves AVX-512 unused on processors that are not Intel's: on two cores of an AMD EPYC (Zen 5)
512 rows from 768 to 5376 features run at 93 GFLOP/s by MKL and at 210 by oneDNN. Weights packed beforehand
were no faster, so they are taken as they lie.
"""

import platform
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.reference import split_rows


def is_available() -> bool:
    """Whether this PyTorch has these products; it is what torch.compile calls, and has no public name."""
    return platform.machine() in ("x86_64", "AMD64") and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(
    x: Tensor, weight: Tensor, bias: Tensor, products: Sequence[int], out: Tensor | None = None
) -> Tensor:
    """As `reference.linear`, for float32 on the CPU."""
    return _products(x, weight, bias, products, out, "none", "")


def linear_gelu(
    x: Tensor, weight: Tensor, bias: Tensor, products: Sequence[int], out: Tensor | None = None
) -> Tensor:
    """As `reference.linear_gelu`, for float32 on the CPU; the GELU is applied in cache."""
    return _products(x, weight, bias, products, out, "gelu", "tanh")


def _products(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    products: Sequence[int],
    out: Tensor | None,
    activation: str,
    algorithm: str,
) -> Tensor:
    def product(rows: Tensor) -> Tensor:
        # rows that are not adjacent in memory would take a path a thousand times slower
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            rows.contiguous(), weight, bias, activation, [], algorithm
        )
        return result

    if out is None and len(products) == 1:
        return product(x)
    out = x.new_empty(len(x), len(weight)) if out is None else out
    for rows, slot in zip(split_rows(x, products), split_rows(out, products), strict=True):
        slot.copy_(product(rows))
    return out
