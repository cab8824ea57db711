"""The norms over rows, in Triton, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import norm, reference
from kernels.rows import Owners
from tests.kernels.worlds import (
    DEVICE,
    assert_near,
    columns_of,
    dtypes,
    owners,
    per_row,
    random,
    scales,
)

LENGTHS = (5, 1, 18)
ROWS = sum(LENGTHS)


def exact_norm(x: Tensor, shift: Tensor, scale: Tensor, layout: Owners) -> Tensor:
    values = x.double()
    centred = values - values.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return normed * (1 + per_row(scale, layout).double()) + per_row(shift, layout).double()


@dtypes
@scales
@pytest.mark.parametrize("width", [32, 96, 192])
def test_rms_norm_agrees(dtype: torch.dtype, scale: float, width: int) -> None:
    x = columns_of(random(ROWS, width, seed=0, dtype=dtype, scale=scale))
    weight = random(width, seed=1, dtype=dtype)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert_near(norm.rms_norm(x, weight), exact, terms=width)


@dtypes
@scales
@pytest.mark.parametrize("width", [32, 96, 192])
def test_modulated_norm_agrees(dtype: torch.dtype, scale: float, width: int) -> None:
    layout = owners(*LENGTHS)
    x = columns_of(random(ROWS, width, seed=0, dtype=dtype, scale=scale))
    shift, factor = (columns_of(random(3, width, seed=s, dtype=dtype)) for s in (1, 2))
    exact = exact_norm(x, shift, factor, layout)
    assert_near(norm.modulated_norm(x, shift, factor, layout), exact, terms=width)


@dtypes
@pytest.mark.parametrize("width", [32, 96])
def test_gated_residual_norm_agrees_and_adds_in_place(dtype: torch.dtype, width: int) -> None:
    layout = owners(*LENGTHS)
    x, y = (columns_of(random(ROWS, width, seed=s, dtype=dtype)) for s in (0, 1))
    gate, shift, factor = (random(3, width, seed=s, dtype=dtype) for s in (2, 3, 4))
    summed = x.double() + per_row(gate, layout).double() * y.double()
    normed = norm.gated_residual_norm(x, gate, y, shift, factor, layout)
    assert_near(x, summed, terms=2)
    assert_near(normed, exact_norm(x, shift, factor, layout), terms=width)


def test_gated_residual_norm_in_float16_stays_finite() -> None:
    x = torch.full((4, 32), 60000.0, dtype=torch.float16, device=DEVICE)
    ones = torch.ones(1, 32, dtype=torch.float16, device=DEVICE)
    normed = norm.gated_residual_norm(x, ones, x.clone(), ones, ones, owners(4))
    assert x.max().item() == 65504
    assert normed.isfinite().all()


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    layout = owners(3, 4)
    x, shift, factor = random(7, 32, seed=0), random(2, 32, seed=1), random(2, 32, seed=2)
    alone = norm.modulated_norm(x, shift, factor, layout)
    x[4], shift[0, 3] = torch.nan, torch.inf
    beside = norm.modulated_norm(x, shift, factor, layout)
    assert torch.equal(beside[[3, 5, 6]], alone[[3, 5, 6]])


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    width=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_any_rows_and_widths_agree_with_the_reference(lengths: list[int], width: int, seed: int) -> None:
    layout = owners(*lengths)
    x, y = random(sum(lengths), width, seed=seed), random(sum(lengths), width, seed=seed + 1)
    gate, shift, factor = (random(len(lengths), width, seed=seed + s) for s in (2, 3, 4))
    same = x.clone()
    ours = norm.gated_residual_norm(x, gate, y, shift, factor, layout)
    theirs = reference.gated_residual_norm(same, gate, y, shift, factor, layout)
    torch.testing.assert_close(x, same)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # one column: a norm of rounding errors


def test_what_does_not_fit_is_refused() -> None:
    x, vectors, layout = random(4, 32, seed=0), random(1, 32, seed=1), owners(4)
    for arguments, message in (
        ((x.double(), vectors, vectors, layout), r"x: .*float64 on .*; allowed: .*bfloat16"),
        ((x.t(), vectors, vectors, layout), r"x: shape \[32, 4\], strides \[1, 32\]"),
        ((x, vectors[:, :31], vectors, layout), r"shift: shape \[1, 31\].*allowed: shape \[1, 32\]"),
        ((x, vectors, vectors.half(), layout), r"scale: .*float16.*allowed: .*float32"),
        ((x[:3], vectors, vectors, layout), r"x: shape \[3, 32\].*the layout has 4 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            norm.modulated_norm(*arguments)
    with pytest.raises(ValueError, match=r"y: .* does not fit"):
        norm.gated_residual_norm(x, vectors, x[:2], vectors, vectors, layout)
    with pytest.raises(ValueError, match=r"scale: shape \[31\]"):
        norm.rms_norm(x, vectors[0, :31])
