"""GELU in Triton against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import activation
from tests.kernels.worlds import (
    assert_near,
    assert_untouched_around,
    columns_of,
    dtypes,
    poisoned,
    random,
    scales,
)


def exact_gelu(x: Tensor) -> Tensor:
    values = x.double()
    inner = (2 / torch.pi) ** 0.5 * (values + 0.044715 * values**3)
    return 0.5 * values * (1 + torch.tanh(inner))


@dtypes
@scales
def test_gelu_agrees_where_it_is_wanted(dtype: torch.dtype, scale: float) -> None:
    x = columns_of(random(5, 96, seed=0, dtype=dtype, scale=scale))
    out = poisoned(5, 96, dtype)
    assert activation.gelu_tanh(x, (2, 3), out) is out
    assert_near(out, exact_gelu(x), terms=4)
    assert_untouched_around(out)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 4), width=st.integers(1, 300), seed=st.integers(0, 99))
def test_any_width_agrees(rows: int, width: int, seed: int) -> None:
    x = random(rows, width, seed=seed, scale=3)
    assert_near(activation.gelu_tanh(x, (rows,)), exact_gelu(x), terms=4)


def test_rows_wider_than_a_tile_are_whole() -> None:
    x = random(2, 4500, seed=0)
    assert_near(activation.gelu_tanh(x, (2,)), exact_gelu(x), terms=4)


def test_the_extremes_are_finite() -> None:
    x = torch.tensor([[-65504.0, -100.0, 0.0, 100.0, 65504.0]], dtype=torch.float16)
    out = activation.gelu_tanh(x.to(random(1, seed=0).device), (1,))
    assert out.tolist() == [[0.0, 0.0, 0.0, 100.0, 65504.0]]


def test_what_does_not_fit_is_refused() -> None:
    x = random(3, 8, seed=0)
    with pytest.raises(ValueError, match=r"x: shape \[3, 8\].*the layout has 4 rows"):
        activation.gelu_tanh(x, (4,))
    with pytest.raises(ValueError, match=r"out: shape \[3, 9\].*does not fit"):
        activation.gelu_tanh(x, (3,), random(3, 9, seed=0))
