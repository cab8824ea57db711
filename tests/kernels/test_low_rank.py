"""Low-rank updates in Triton against float64, and that no span sees another one."""

import pytest
import torch
from torch import Tensor

from kernels import low_rank, reference
from kernels.rows import Span
from kernels.updates import LowRank, Update, Updates
from tests.kernels.worlds import (
    DEVICE,
    DTYPES,
    FLOAT32_EPS,
    assert_untouched_around,
    columns_of,
    dtypes,
    random,
)

DEPTH, WIDTH = 70, 150


def change(
    rank: int, outputs: Span, *, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0
) -> LowRank:
    down = random(rank, DEPTH, seed=seed, dtype=dtype, scale=DEPTH**-0.5)
    up = random(outputs.rows, rank, seed=seed + 1, dtype=dtype)
    return LowRank(down, up, outputs, scale)


def company(dtype: torch.dtype = torch.float32, *, scale: float = 1.0) -> list[Update]:
    """Two changes of the same rows, q and v of others, and rows between that have none."""
    whole, wide = (
        change(rank, Span(0, WIDTH), seed=rank, dtype=dtype, scale=scale * own)
        for rank, own in ((3, 0.5), (40, -2.0))
    )
    q, v = change(1, Span(0, 50), seed=8, dtype=dtype), change(17, Span(100, 50), seed=9, dtype=dtype)
    first, last = Span(2, 1), Span(9, 130)
    return [Update(first, whole), Update(first, wide), Update(last, q), Update(last, wide), Update(last, v)]


def added(op: object, x: Tensor, out: Tensor, each: list[Update]) -> Tensor:
    op(x, Updates.build(each, DEVICE), out)
    return out


def exactly(x: Tensor, out: Tensor, each: list[Update]) -> tuple[Tensor, Tensor]:
    """The sum in float64, and how much of it may be lost.

    Each inner product rounds once, and may fall to either side of a border; each sum rounds to the dtype.
    """
    exact, lost = out.double(), torch.zeros_like(out, dtype=torch.float64)
    eps = torch.finfo(x.dtype).eps
    for rows, change in each:
        inner, up = rows.of(x).double() @ change.down.double().T, change.scale * change.up.double().T
        columns = slice(change.outputs.start, change.outputs.stop)
        rows.of(exact)[:, columns] += inner @ up
        float32_sums = 4 * FLOAT32_EPS * (DEPTH + change.rank) ** 0.5 * (inner.abs() @ up.abs())
        rows.of(lost)[:, columns] += eps * (inner.abs() @ up.abs() + rows.of(exact)[:, columns].abs() / 2)
        rows.of(lost)[:, columns] += float32_sums
    return exact, lost


@pytest.mark.parametrize("op", [reference.low_rank_add, low_rank.low_rank_add], ids=["reference", "triton"])
@dtypes
def test_low_rank_add_agrees(dtype: torch.dtype, op: object) -> None:
    x, out = (columns_of(random(141, width, seed=width, dtype=dtype)) for width in (DEPTH, WIDTH))
    each, before = company(dtype), out.clone()
    exact, lost = exactly(x, out, each)
    added(op, x, out, each)
    assert out.isfinite().all()
    assert ((out.double() - exact).abs() <= lost).all()
    assert (exact - before.double()).norm() > 1e2 * lost.norm()
    assert_untouched_around(out)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_without_an_update_stay_as_they_are(dtype: torch.dtype) -> None:
    x, out = random(141, DEPTH, seed=0, dtype=dtype), random(141, WIDTH, seed=1, dtype=dtype)
    before = out.clone()
    added(low_rank.low_rank_add, x, out, company(dtype))
    for untouched in (slice(0, 2), slice(3, 9), slice(139, 141)):
        assert torch.equal(out[untouched], before[untouched])
    assert not torch.equal(out, before)


def test_a_span_is_the_same_in_any_company() -> None:
    x, before = random(141, DEPTH, seed=0), random(141, WIDTH, seed=1)
    each = company()
    together = added(low_rank.low_rank_add, x, before.clone(), each)
    own = [update for update in each if update.rows == Span(9, 130)]
    alone = added(low_rank.low_rank_add, x, before.clone(), own)
    assert torch.equal(alone[9:139], together[9:139])
    moved = [Update(Span(0, 130), update.change) for update in own]
    elsewhere = added(low_rank.low_rank_add, x[9:139], before[9:139].clone(), moved)
    assert torch.equal(elsewhere, together[9:139])


def test_layers_with_the_same_work_share_its_tiles_and_have_their_own_changes() -> None:
    x, before = random(141, DEPTH, seed=0), random(141, WIDTH, seed=1)
    by_layer = {"whole": company(), "alike": company(scale=2.0), "other": company()[:2]}
    together = Updates.build_all(by_layer, DEVICE)
    assert together["whole"].tiles is together["alike"].tiles is not together["other"].tiles
    results = []
    for layer, each in by_layer.items():
        out = before.clone()
        low_rank.low_rank_add(x, together[layer], out)
        assert torch.equal(out, added(low_rank.low_rank_add, x, before.clone(), each))
        results.append(out)
    assert not torch.equal(results[0], results[1])


def test_no_update_is_no_launch() -> None:
    out = random(4, WIDTH, seed=1)
    assert torch.equal(added(low_rank.low_rank_add, random(4, DEPTH, seed=0), out.clone(), []), out)


def test_what_does_not_fit_is_refused() -> None:
    x, out = random(4, DEPTH, seed=0), random(4, WIDTH, seed=1)
    rows, good = Span(0, 4), change(2, Span(0, WIDTH), seed=0)
    for wrong, message in (
        (LowRank(good.down[:, :9].contiguous(), good.up, good.outputs), r"down: shape \[2, 9\]"),
        (LowRank(good.down, good.up[:9], good.outputs), r"up: shape \[9, 2\]"),
        (LowRank(good.down.half(), good.up, good.outputs), r"down: .*float16"),
        (LowRank(good.down, good.up, Span(1, WIDTH)), "outputs 1 to 151; .* outputs up to 150"),
        (change(129, Span(0, WIDTH), seed=0), "rank 129 .* allowed: rank 1 to 128"),
        (LowRank(good.down, random(2, WIDTH, seed=0).T, good.outputs), "up: .*adjacent columns"),
    ):
        with pytest.raises(ValueError, match=message):
            low_rank.low_rank_add(x, Updates.build([Update(rows, wrong)], DEVICE), out)
    with pytest.raises(ValueError, match=r"out: shape \[3, 150\].*the layout has 4 rows"):
        low_rank.low_rank_add(x, Updates.build([Update(rows, good)], DEVICE), out[:3])
