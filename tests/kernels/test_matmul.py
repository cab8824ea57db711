"""Matrix products in Triton against float64, and that a row does not see its company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import matmul
from tests.kernels.test_activation import exact_gelu
from tests.kernels.worlds import (
    DEVICE,
    assert_near,
    assert_untouched_around,
    columns_of,
    dtypes,
    owners,
    per_row,
    poisoned,
    random,
    scales,
)


@dtypes
@scales
@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 32, 48), (67, 70, 130), (130, 64, 40)])
def test_linear_agrees(dtype: torch.dtype, scale: float, rows: int, depth: int, columns: int) -> None:
    x = columns_of(random(rows, depth, seed=0, dtype=dtype, scale=scale))
    weight, bias = random(columns, depth, seed=1, dtype=dtype), random(columns, seed=2, dtype=dtype)
    out = poisoned(rows, columns, dtype)
    assert matmul.linear(x, weight, bias, (rows,), out) is out
    exact = x.double() @ weight.double().T + bias.double()
    assert_near(out, exact, terms=depth)
    assert_untouched_around(out)


@dtypes
def test_linear_gelu_is_both_in_a_row(dtype: torch.dtype) -> None:
    x, weight = random(9, 40, seed=0, dtype=dtype), random(50, 40, seed=1, dtype=dtype, scale=0.3)
    bias = random(50, seed=2, dtype=dtype)
    between = matmul.linear(x, weight, bias, (4, 5))
    exact = exact_gelu(between)
    assert_near(matmul.linear_gelu(x, weight, bias, (4, 5)), exact, terms=4)


@dtypes
def test_linear_residual_adds_every_row_with_its_gate(dtype: torch.dtype) -> None:
    x, rows = (columns_of(random(70, width, seed=width, dtype=dtype)) for width in (50, 40))
    weight, bias = random(50, 40, seed=1, dtype=dtype), random(50, seed=2, dtype=dtype)
    gate, layout = columns_of(random(3, 50, seed=3, dtype=dtype)), owners(5, 1, 64)
    between = matmul.linear(rows, weight, bias, (70,))
    exact = x.double() + per_row(gate, layout).double() * between.double()
    matmul.linear_residual(x, gate, layout.by_row, rows, weight, bias, (6, 64))
    assert_near(x, exact, terms=2)
    assert_untouched_around(x)


def test_linear_residual_in_float16_stays_finite() -> None:
    x = torch.full((2, 4), 60000.0, dtype=torch.float16, device=DEVICE)
    ones, bias = torch.ones(4, 4, dtype=torch.float16, device=DEVICE), torch.zeros_like(x[0])
    matmul.linear_residual(x, ones[:1], owners(2).by_row, 10000 * ones[:2], ones, bias, (2,))
    assert x.tolist() == [[65504.0] * 4] * 2


@dtypes
def test_a_row_is_the_same_in_any_company(dtype: torch.dtype) -> None:
    x = random(200, 48, seed=0, dtype=dtype)
    weight, bias = random(70, 48, seed=1, dtype=dtype), random(70, seed=2, dtype=dtype)
    together = matmul.linear(x, weight, bias, (200,))
    # The interpreter's products are numpy's, whose rows depend on their place in a tile; a GPU's do not.
    anywhere = [(63, 66), (150, 200)] if DEVICE.type == "cuda" else []
    for start, stop in ((0, 1), (0, 130), (128, 200), *anywhere):
        alone = matmul.linear(x[start:stop], weight, bias, (stop - start,))
        assert torch.equal(alone, together[start:stop])


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 70), depth=st.integers(1, 40), columns=st.integers(1, 70))
def test_any_shape_agrees(rows: int, depth: int, columns: int) -> None:
    x, weight, bias = random(rows, depth, seed=0), random(columns, depth, seed=1), random(columns, seed=2)
    exact = x.double() @ weight.double().T + bias.double()
    assert_near(matmul.linear(x, weight, bias, (rows,)), exact, terms=depth)


def test_what_does_not_fit_is_refused() -> None:
    x, weight, bias = random(4, 8, seed=0), random(6, 8, seed=1), random(6, seed=2)
    for arguments, message in (
        ((x, weight[:, :7], bias, (4,)), r"weight: shape \[6, 7\].*allowed: shape \[6, 8\]"),
        ((x, weight, bias[:5], (4,)), r"bias: shape \[5\]"),
        ((x, weight.half(), bias, (4,)), r"weight: .*float16"),
        ((x, weight, bias, (3,)), r"x: shape \[4, 8\].*the layout has 3 rows"),
        ((x, weight, bias, (4,), random(4, 7, seed=0)), r"out: shape \[4, 7\].*allowed: shape \[4, 6\]"),
    ):
        with pytest.raises(ValueError, match=message):
            matmul.linear(*arguments)
    update, gate, owner = random(4, 6, seed=3), random(2, 6, seed=4), owners(1, 3).by_row
    for arguments, message in (
        ((update, gate[:, :5], owner), r"gate: shape \[2, 5\].*allowed: shape \[2, 6\]"),
        ((update, gate, owner[1:]), r"owner: shape \[3\].*allowed: int32 \[4\]"),
        ((update[1:], gate, owner), r"x: shape \[3, 6\].*the layout has 4 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            matmul.linear_residual(*arguments, x, weight, bias, (4,))
