"""The products of a CPU agree with the reference, wherever their rows come from and their results go."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import onednn, reference
from tests.kernels.worlds import assert_near

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="oneDNN is part of PyTorch on x86 only")

LENGTHS = (5, 1, 58)
Operation = Callable[..., Tensor]
PAIRS = [(onednn.linear, reference.linear), (onednn.linear_gelu, reference.linear_gelu)]


def world(depth: int = 96, width: int = 72) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((sum(LENGTHS), depth), (width, depth), (width,))
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, weight, bias


def assert_agree(ours: Operation, theirs: Operation, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """The sum of `depth` products of about one is off by roundings of its largest partial sum."""
    exact = theirs(x.double(), weight.double(), bias.double(), (len(x),))
    size = float((x.double() @ weight.double().T).abs().max())
    for products in ((len(x),), LENGTHS):
        assert_near(ours(x, weight, bias, products), exact, terms=x.shape[1], size=size)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_a_product_is_the_references(ours: Operation, theirs: Operation) -> None:
    assert_agree(ours, theirs, *world())


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_rows_and_results_may_be_columns_of_something_wider(ours: Operation, theirs: Operation) -> None:
    x, weight, bias = world()
    wide = torch.full((len(x), x.shape[1] + 7), torch.nan)
    inside = wide[:, 3:-4]
    inside.copy_(x)
    into = torch.full((len(x), len(weight) + 9), torch.nan)
    slot = into[:, 4:-5]
    assert ours(inside, weight, bias, LENGTHS, slot) is slot
    torch.testing.assert_close(slot, theirs(x, weight, bias, LENGTHS), rtol=1e-5, atol=1e-5)
    assert into[:, :4].isnan().all()
    assert into[:, -5:].isnan().all()
