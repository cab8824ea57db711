"""On a GPU: every kernel at every width and dtype, what is chosen there, and streams beside the default."""

import logging
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.attention import one_loop_attention
from kernels.cases import Dimensions, cases, relative_error
from kernels.dispatch import choose
from kernels.ops import Ops, triton_ops

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GPU = torch.device("cuda")
OPS = [field.name for field in fields(Ops)]
WIDTHS = {
    "embedded": Dimensions(heads=6, head_dim=32, text_width=128, channels=(16, 32, 64), norm_groups=8),
    "flux": Dimensions(),
}
SIDES = (272, 208)  # 289 and 169 rows: no tile has only whole parts

dtypes = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32], ids=lambda dtype: str(dtype)[6:]
)
widths = pytest.mark.parametrize("dimensions", WIDTHS.values(), ids=WIDTHS)


@dtypes
@widths
@pytest.mark.parametrize("op", OPS)
def test_every_kernel_agrees_with_the_reference(op: str, dimensions: Dimensions, dtype: torch.dtype) -> None:
    every = cases(SIDES, dtype=dtype, device=GPU, dimensions=dimensions)
    kernel = getattr(triton_ops(), op)
    errors = {case.shape: (case.error(kernel), case.tolerance) for case in every if case.op == op}
    if not errors:
        pytest.skip("there are products of e4m3 in bfloat16 only")
    assert all(error <= limit for error, limit in errors.values()), errors


@dtypes
@widths
def test_every_kernel_is_kept(
    dimensions: Dimensions, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="kernels.dispatch"):
        ops = choose("auto", device=GPU, dtype=dtype, exact=True, dimensions=dimensions)
    assert caplog.messages == []
    ours = triton_ops()
    if dtype == torch.float32:
        ours = replace(ours, attention=reference.attention)
    assert ops == ours


@dtypes
def test_in_fast_numerics_only_products_and_attention_may_be_the_vendors(dtype: torch.dtype) -> None:
    ops = choose("auto", device=GPU, dtype=dtype, exact=False, dimensions=Dimensions())
    ours = triton_ops()
    theirs = {name for name in OPS if getattr(ops, name) is not getattr(ours, name)}
    assert {"linear", "linear_gelu"} <= theirs <= {"linear", "linear_gelu", "attention"}


@pytest.mark.parametrize("op", ["attention", "gelu_tanh", "linear"])
def test_a_kernel_runs_on_the_current_stream(op: str) -> None:
    """Its operand is written late on that stream: a launch on another one would read zeros."""
    case = next(
        case
        for case in cases(SIDES, dtype=torch.bfloat16, device=GPU, dimensions=WIDTHS["embedded"])
        if case.op == op
    )
    expected = case.result(case.reference)
    kernel, occupied = getattr(triton_ops(), op), torch.randn(8192, 8192, device=GPU)
    case.result(kernel)  # compiled before: a compiler takes longer than the products below
    stream = torch.cuda.Stream()

    def late(first: Tensor, *others: object) -> Tensor:
        there = torch.zeros_like(first)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            for _ in range(20):
                torch.mm(occupied, occupied)
            there.copy_(first)
            out: Tensor = kernel(there, *others)
        stream.synchronize()
        return out

    assert relative_error(case.result(late), expected) <= case.tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("specialised", [False, True], ids=["plain", "specialised"])
@pytest.mark.parametrize("sides", [(256, 512), SIDES], ids=["whole tiles", "odd tiles"])
def test_attention_in_one_loop_agrees(sides: tuple[int, ...], specialised: bool, dtype: torch.dtype) -> None:
    if torch.cuda.get_device_capability() not in ((9, 0), (10, 0), (10, 3)):
        pytest.skip("needs sm_90 or sm_100")
    rival: Callable[..., Tensor] = partial(one_loop_attention, specialised=specialised)
    for dimensions in WIDTHS.values():
        every = cases(sides, dtype=dtype, device=GPU, dimensions=dimensions)
        case = next(case for case in every if case.op == "attention")
        assert case.error(rival) <= case.tolerance
