"""Rows in e4m3: what the reference makes of them, and that the kernels find the same values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import activation, norm, reference
from kernels.float8 import FLOAT8, Quantized
from tests.kernels.worlds import DEVICE, columns_of, dtypes, owners, random, scales


def assert_same(actual: Quantized, expected: Quantized) -> None:
    assert torch.equal(actual.scale, expected.scale)
    assert torch.equal(actual.values.float(), expected.values.float())


def test_a_row_is_scaled_by_the_smallest_power_of_two_that_holds_it() -> None:
    peaks = torch.tensor([448.0, 448.1, 1.75, 1.76, 0.0, 3e38])
    quantized = reference.quantize(peaks[:, None])
    assert quantized.scale[:4, 0].log2().tolist() == [0, 1, -8, -7]
    assert quantized.values.float().abs().max() <= 448
    assert quantized.values[4].float().item() == 0
    assert quantized.dequantized(torch.float32)[5].item() == pytest.approx(3e38, rel=2**-4)


def test_every_value_is_within_half_a_digit() -> None:
    x = random(64, 128, seed=0)
    back = reference.quantize(x).dequantized(torch.float64)
    smallest = reference.quantize(x).scale.double() * 2**-9  # below the range of exponents digits get lost
    assert ((back - x).abs() <= (2**-4 * x.abs()).clamp_min(smallest / 2)).all()


def test_what_is_e4m3_already_stays_as_it_is() -> None:
    stored = random(32, 64, seed=0).to(FLOAT8)
    assert torch.equal(reference.quantize(stored.float()).dequantized(torch.float32), stored.float())


def test_the_product_of_quantised_rows_is_that_of_what_they_stand_for() -> None:
    x, weight = random(7, 64, seed=0), random(32, 64, seed=1)
    bias = random(32, seed=2)
    rows, columns = reference.quantize(x), reference.quantize(weight)
    out = torch.full((7, 32), torch.nan, device=DEVICE)
    assert reference.quantized_linear(rows, columns, bias, (3, 4), out) is out
    exact = rows.dequantized(torch.float64) @ columns.dequantized(torch.float64).t() + bias.double()
    assert (out - exact).norm() / exact.norm() < 1e-6
    assert (out - (x @ weight.t() + bias)).norm() / out.norm() < 0.05  # two roundings of 2^-4 at most


@dtypes
@scales
def test_quantize_agrees_with_the_reference(dtype: torch.dtype, scale: float) -> None:
    x = columns_of(random(5, 96, seed=0, dtype=dtype, scale=scale))
    x[3] = 0
    assert_same(activation.quantize(x), reference.quantize(x))


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 5000), exponents=st.integers(1, 60), seed=st.integers(0, 99))
def test_any_width_and_any_range_agrees_with_the_reference(width: int, exponents: int, seed: int) -> None:
    spread = torch.logspace(-exponents / 2, exponents / 2, width, base=2).to(DEVICE)
    x = random(2, width, seed=seed) * spread
    assert_same(activation.quantize(x), reference.quantize(x))


@dtypes
def test_quantized_gelu_is_gelu_then_quantized(dtype: torch.dtype) -> None:
    x, beside = (columns_of(random(5, width, seed=width, dtype=dtype, scale=3)) for width in (160, 48))
    activated = activation.gelu_tanh(x, (5,))
    assert_same(activation.quantized_gelu(x, (5,)), reference.quantize(activated))
    both = torch.cat([beside, activated], dim=1)
    assert_same(activation.quantized_gelu(x, (5,), beside), reference.quantize(both))


@dtypes
def test_norms_are_quantised_as_if_written_between(dtype: torch.dtype) -> None:
    layout = owners(5, 1, 18)
    x, y = (columns_of(random(24, 96, seed=s, dtype=dtype)) for s in (0, 1))
    gate, shift, factor = (random(3, 96, seed=s, dtype=dtype) for s in (2, 3, 4))
    plain = norm.modulated_norm(x, shift, factor, layout)
    assert_same(norm.modulated_norm(x, shift, factor, layout, quantized=True), reference.quantize(plain))
    twin = x.clone()
    plain = norm.gated_residual_norm(twin, gate, y, shift, factor, layout)
    quantized = norm.gated_residual_norm(x, gate, y, shift, factor, layout, quantized=True)
    assert_same(quantized, reference.quantize(plain))
    assert torch.equal(x, twin)


def test_what_does_not_fit_is_refused() -> None:
    x = random(3, 8, seed=0)
    with pytest.raises(ValueError, match=r"x: shape \[3, 8\].*the layout has 4 rows"):
        activation.quantized_gelu(x, (4,))
    with pytest.raises(ValueError, match=r"x: shape \[2, 8\].*the layout has 3 rows"):
        activation.quantized_gelu(random(2, 8, seed=0), (2,), x)
    with pytest.raises(ValueError, match=r"beside: .*float16.* does not fit .*float32"):
        activation.quantized_gelu(x, (3,), x.half())
