"""The norm and rotation of queries and keys, in Triton, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import reference, rotary
from tests.kernels.worlds import assert_near, assert_untouched_around, columns_of, dtypes, random, scales


def exact_heads(heads: Tensor, weight: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The norm is rounded to its dtype before the rotation, as the published code has it."""
    values = heads.double()
    normed = values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    even, odd = normed.view(*normed.shape[:-1], -1, 2).unbind(-1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    return torch.stack([even * c - odd * s, even * s + odd * c], dim=-1).flatten(-2)


@dtypes
@scales
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 32), (2, 64), (1, 128), (6, 32)])
def test_queries_and_keys_are_normed_and_turned_in_place(
    dtype: torch.dtype, scale: float, heads: int, head_dim: int
) -> None:
    rows, width = 7, heads * head_dim
    qkv = columns_of(random(rows, 3 * width, seed=0, dtype=dtype, scale=scale))
    before = qkv.clone()
    weights = [random(head_dim, seed=s, dtype=dtype) for s in (1, 2)]
    angles = random(rows, head_dim // 2, seed=3, scale=100)
    rotary.qk_norm_rope(qkv, *weights, angles.cos(), angles.sin())
    for part, weight in enumerate(weights):
        columns = slice(part * width, (part + 1) * width)
        own = before[:, columns].view(rows, heads, head_dim)
        exact = exact_heads(own, weight, angles.cos(), angles.sin()).flatten(1)
        # two roundings to the dtype, the first before a sum of two
        terms = head_dim if dtype == torch.float32 else int((torch.finfo(dtype).eps / 1.2e-7) ** 2)
        assert_near(qkv[:, columns], exact, terms=terms)
    assert torch.equal(qkv[:, 2 * width :], before[:, 2 * width :])
    assert_untouched_around(qkv)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), heads=st.integers(1, 5), seed=st.integers(0, 99))
def test_any_number_of_heads_agrees_with_the_reference(rows: int, heads: int, seed: int) -> None:
    qkv = random(rows, 3 * heads * 32, seed=seed)
    same = qkv.clone()
    q_scale, k_scale = random(32, seed=seed + 1), random(32, seed=seed + 2)
    angles = random(rows, 16, seed=seed + 3)
    rotary.qk_norm_rope(qkv, q_scale, k_scale, angles.cos(), angles.sin())
    reference.qk_norm_rope(same, q_scale, k_scale, angles.cos(), angles.sin())
    torch.testing.assert_close(qkv, same)


def test_what_does_not_fit_is_refused() -> None:
    qkv, weight, table = random(4, 3 * 64, seed=0), random(32, seed=1), random(4, 16, seed=2)
    for arguments, message in (
        ((random(4, 3 * 48, seed=0), random(48, seed=1), random(48, seed=1), table, table), "heads of 48"),
        ((random(4, 100, seed=0), weight, weight, table, table), r"shape \[4, 100\].*allowed: 3 \* heads"),
        ((qkv, weight, weight[:16], table, table), r"k_scale: shape \[16\]"),
        ((qkv, weight, weight, table.double(), table), r"cos: .*float64.*allowed: float32 \[4, 16\]"),
        ((qkv, weight, weight, table, table[:3]), r"sin: shape \[3, 16\]"),
    ):
        with pytest.raises(ValueError, match=message):
            rotary.qk_norm_rope(*arguments)
