"""Which implementation runs each operation: decided once, when a model is loaded, and said in the log."""

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from functools import partial
from statistics import median
from typing import Literal

import torch

from kernels import onednn, reference
from kernels.cases import Case, Dimensions, cases
from kernels.ops import Ops, reference_ops, triton_ops, with_vendor_products

log = logging.getLogger(__name__)

KernelsName = Literal["auto", "triton", "reference"]
_TRIALS = 9
_CHECKED_SIDES = (272, 208)  # 289 and 169 rows: no tile has only whole parts
_CLEARLY = 0.95


def choose(
    name: KernelsName, *, device: torch.device, dtype: torch.dtype, exact: bool, dimensions: Dimensions
) -> Ops:
    """Return the operations for a device.

    `auto` is the reference on a CPU, with oneDNN's matrix products in float32. On a GPU it is Triton, where
    every kernel first shows on this very device that it agrees with the reference. Unless `exact` wants rows
    that do not see each other and the same bits at every start, matrix products are the vendor's, and
    attention too where that is faster here.

    Args:
        name: what the user asked for.
        dtype: of the model's weights.
        exact: whether a row's bits may not depend on the other rows of a product.
        dimensions: of the model, at which the kernels are checked.

    Raises `ValueError` for Triton without a GPU.
    """
    if name == "auto" and device.type == "cpu" and dtype == torch.float32 and onednn.is_available():
        log.info("operations: the reference; matrix products: oneDNN")
        return replace(reference_ops(), linear=onednn.linear, linear_gelu=onednn.linear_gelu)
    if name == "reference" or (name == "auto" and device.type != "cuda"):
        log.info("operations: the reference")
        return reference_ops()
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"kernels triton on {device}: Triton needs a GPU; allowed here: auto, reference")
    ops = triton_ops()
    if name == "triton":
        log.info("operations: Triton")
        return ops
    build = partial(cases, dtype=dtype, device=device, dimensions=dimensions)
    ops = trusted(ops, build(_CHECKED_SIDES))
    if dtype == torch.float32:
        ops = replace(ops, attention=reference.attention)  # ours spills registers
    if not exact:
        ops = with_vendor_products(ops)
        attention = next(case for case in build((1024,)) if case.op == "attention")
        ours_s, theirs_s = (
            _seconds(partial(attention.timed, op)) for op in (ops.attention, attention.reference)
        )
        if theirs_s < _CLEARLY * ours_s:
            ops = replace(ops, attention=reference.attention)
        log.info("attention: Triton %.0f us, torch %.0f us", 1e6 * ours_s, 1e6 * theirs_s)
    kept = [each.name for each in fields(ops) if getattr(ops, each.name) is getattr(reference, each.name)]
    log.info("operations: Triton; the reference for: %s", ", ".join(kept) or "none")
    return ops


def trusted(ops: Ops, every: Iterable[Case]) -> Ops:
    """Return `ops` with the reference for every operation that fails, or is further from it than allowed."""
    for case in every:
        operation = getattr(ops, case.op)
        if operation is None:
            continue
        try:
            error = case.error(operation)
            wrong = None if error <= case.tolerance else f"is off by {error:.2g} of the norm"
        except torch.AcceleratorError:
            raise  # the device itself is lost
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
