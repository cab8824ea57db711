"""Which implementation runs each operation: decided once, when a model is loaded, and said in the log."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial
from statistics import median
from typing import Literal

import torch

from kernels import reference
from kernels.cases import Case, Dimensions, cases
from kernels.ops import Ops, reference_ops, then_gelu, triton_ops

log = logging.getLogger(__name__)

KernelsName = Literal["auto", "triton", "reference"]
TOLERANCE = 2e-2  # of the norm: in bfloat16 both sides round several times
_TRIALS = 9


def choose(
    name: KernelsName, *, device: torch.device, dtype: torch.dtype, exact: bool, heads: int, head_dim: int
) -> Ops:
    """Return the operations for a device.

    `auto` is the reference on a CPU. On a GPU it is Triton, except for matrix products, which are the
    vendor's unless `exact` wants rows that do not see each other, and attention, where the faster of both
    is measured. There every kernel first shows on this very device that it agrees with the reference.

    Args:
        name: what the user asked for.
        dtype: of the model's weights.
        exact: whether a row's bits may not depend on the other rows of a product.
        heads, head_dim: of the model's attention.
    """
    if name == "reference" or (name == "auto" and device.type != "cuda"):
        log.info("operations: the reference")
        return reference_ops()
    ops = triton_ops()
    if name == "triton":
        log.info("operations: Triton")
        return ops
    if not exact:
        with_gelu = partial(then_gelu, reference.linear, ops.gelu_tanh)
        ops = replace(ops, linear=reference.linear, linear_gelu=with_gelu)
    if dtype == torch.float32:
        ops = replace(ops, attention=reference.attention)  # ours spills registers
    build = partial(cases, dtype=dtype, device=device, dimensions=Dimensions(heads=heads, head_dim=head_dim))
    ops = trusted(ops, build(ops, side=256, batch=2))
    (attention,) = (case for case in build(ops, side=1024, batch=1) if case.op == "attention")
    if _seconds(attention.ours) > _seconds(attention.reference):
        ops = replace(ops, attention=reference.attention)
    by_reference = [
        each.name for each in fields(ops) if getattr(ops, each.name).__module__ == reference.__name__
    ]
    log.info("operations: Triton; the reference for %s", ", ".join(by_reference) or "none")
    return ops


def trusted(ops: Ops, every: Iterable[Case]) -> Ops:
    """Return `ops` with the reference in place of every operation that fails or computes something else."""
    for case in every:
        try:
            error = case.error()
            wrong = None if error <= TOLERANCE else f"is off by {error:.2g} of the norm"
        except Exception as failure:  # noqa: BLE001 - whatever a compiler raises, there is another way
            wrong = f"fails: {failure}"
        if wrong:
            log.warning("operation %s: the kernel %s; the reference runs", case.op, wrong)
            ops = replace(ops, **{case.op: getattr(reference, case.op)})
    return ops


def _seconds(call: Callable[[], object]) -> float:
    """Median seconds of a call on the GPU, after one that compiles."""
    call()
    trials = []
    for _ in range(_TRIALS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        trials.append(time.perf_counter() - began)
    return median(trials)
