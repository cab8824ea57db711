"""GroupNorm and SiLU in Triton against float64."""

import pytest
import torch

from kernels.group_norm import group_norm_silu
from tests.kernels.worlds import assert_near, dtypes, random


def channels_last(*shape: int, dtype: torch.dtype, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    x = random(*shape, seed=0, dtype=torch.float64, scale=scale) + shift
    return x.to(dtype).to(memory_format=torch.channels_last)


@dtypes
@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 64, 5, 3), 32), ((1, 16, 33, 17), 8), ((3, 8, 1, 1), 4), ((1, 512, 9, 9), 32)]
)
def test_group_norm_silu_agrees(dtype: torch.dtype, silu: bool, shape: tuple[int, ...], groups: int) -> None:
    x = channels_last(*shape, dtype=dtype, scale=3.0, shift=1.0)
    weight, bias = (random(shape[1], seed=s, dtype=dtype) for s in (1, 2))
    out = group_norm_silu(x, groups, weight, bias, 1e-6, silu=silu)
    grouped = x.double().reshape(shape[0], groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    normed = (centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()).view(shape)
    normed = normed * weight.double()[:, None, None] + bias.double()[:, None, None]
    exact = normed * torch.sigmoid(normed) if silu else normed
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_near(out, exact, terms=16)


def test_a_mean_far_from_zero_loses_no_digits() -> None:
    """The variance is summed around the mean: E[x^2] - E[x]^2 would be all rounding here."""
    x = channels_last(1, 16, 40, 40, dtype=torch.float32, shift=1000.0)
    ones, zeros = torch.ones(16, device=x.device), torch.zeros(16, device=x.device)
    grouped = x.double().reshape(1, 8, -1)
    exact = ((grouped - grouped.mean(-1, keepdim=True)) / grouped.std(-1, correction=0, keepdim=True)).view(
        x.shape
    )
    out = group_norm_silu(x, 8, ones, zeros, 0.0, silu=False)
    assert (out.double() - exact).abs().max() < 1000 * 4 * torch.finfo(torch.float32).eps


def test_what_does_not_fit_is_refused() -> None:
    x = channels_last(1, 16, 4, 4, dtype=torch.float32)
    weight, bias = random(16, seed=1), random(16, seed=2)
    for arguments, message in (
        ((x.contiguous(), 8, weight, bias), "allowed: channels-last memory"),
        ((x, 6, weight, bias), "16 channels in 6 groups; allowed: powers of two"),
        ((x, 8, weight[:8], bias), r"weight: shape \[8\]"),
    ):
        with pytest.raises(ValueError, match=message):
            group_norm_silu(*arguments, 1e-6, silu=True)
