"""The cost model: what it predicts, what it learns from timings, and where a larger step stops paying."""

import random

import msgspec
import pytest

from server.costs import Costs, CostTable, Shape, StepKind, Timed, fit

SMALL, MIDDLE, LARGE = (Shape(side, side, txt_rows=256) for side in (256, 512, 1024))
TABLE = CostTable(
    step_fixed_s=0.004,
    row_s=2e-5,
    pair_s=1e-9,
    text_fixed_s=0.003,
    text_row_s=1e-5,
    decode_fixed_s=0.001,
    decode_pixel_s=3e-8,
)


def timings(table: CostTable, *, noise: float = 0.0) -> list[Timed]:
    """Time steps on a device that is exactly as `table` says, but for noise."""
    costs, chance = Costs.of(table), random.Random(7)

    def timed(kind: StepKind, shapes: tuple[Shape, ...], seconds: float) -> Timed:
        return Timed(kind, shapes, seconds * chance.uniform(1 - noise, 1 + noise))

    made = [timed(StepKind.ENCODE, (SMALL,) * count, costs.encode_s((SMALL,) * count)) for count in (1, 2, 4)]
    for shape in (SMALL, MIDDLE, LARGE):
        made.append(timed(StepKind.DECODE, (shape,), costs.decode_s(shape)))
        for count in (1, 2, 3, 4):
            shapes = (shape,) * count
            made.append(timed(StepKind.DENOISE, shapes, costs.step_s(shapes)))
    return made


def test_a_step_costs_its_rows_and_the_squares_of_each_sample() -> None:
    costs = Costs.of(CostTable(step_fixed_s=1.0, row_s=0.01, pair_s=0.0001))
    assert Shape(256, 256, txt_rows=44).rows == 300
    assert costs.step_s([Shape(256, 256, txt_rows=44)]) == pytest.approx(1 + 3 + 9)
    assert costs.step_s([Shape(256, 256, txt_rows=44)] * 2) == pytest.approx(1 + 2 * (3 + 9))


def test_guidance_is_two_samples_and_not_one_of_twice_the_rows() -> None:
    costs = Costs.of(TABLE)
    assert costs.step_s([MIDDLE._replace(passes=2)]) == pytest.approx(costs.step_s([MIDDLE] * 2))


def test_a_step_is_efficient_where_its_time_is_that_of_its_rows() -> None:
    costs = Costs.of(CostTable(step_floor_s=6.0, step_fixed_s=1.0, row_s=0.01, mixing=1.5))
    shape, other = Shape(256, 256, txt_rows=44), Shape(256, 512, txt_rows=88)
    assert costs.efficiency([shape]) == pytest.approx(3 / 6)
    assert costs.efficiency([shape] * 2) == pytest.approx(6 / 7)
    assert costs.efficiency([shape] * 99) > 0.99
    assert costs.efficiency([shape, other]) == pytest.approx(9 / 10 / 1.5)
    assert Costs.of(CostTable()).efficiency([shape]) == 1.0


def test_the_host_launches_no_faster_than_its_floor() -> None:
    costs = Costs.of(CostTable(step_floor_s=0.167, row_s=0.0595 / 1024))
    step_s = [costs.step_s([Shape(512, 512, txt_rows=0)] * count) for count in (1, 2, 4, 8)]
    assert step_s == pytest.approx([0.167, 0.167, 0.238, 0.476])


def test_a_step_of_several_sizes_pays_for_mixing() -> None:
    costs = Costs.of(msgspec.structs.replace(TABLE, mixing=1.5))
    apart_s = TABLE.step_fixed_s + costs.rows_s(SMALL) + costs.rows_s(LARGE)
    assert costs.step_s([SMALL, LARGE]) == pytest.approx(1.5 * apart_s)


def test_a_bill_is_what_a_picture_takes_from_others_and_how_long_it_takes_alone() -> None:
    bill = Costs.of(TABLE).bill(SMALL, steps=4)
    each_s = 512 * 2e-5 + 512**2 * 1e-9
    ends_s = 0.003 + 256 * 1e-5 + 0.001 + 256 * 256 * 3e-8
    assert bill.total_s == pytest.approx(ends_s + 4 * each_s)
    assert bill.alone_s == pytest.approx(ends_s + 4 * (0.004 + each_s))


def test_the_fit_finds_the_table_that_made_the_timings() -> None:
    fitted = fit(timings(TABLE))
    for name in ("step_fixed_s", "row_s", "pair_s", "text_fixed_s", "text_row_s", "decode_pixel_s"):
        assert getattr(fitted, name) == pytest.approx(getattr(TABLE, name), rel=1e-6), name
    assert fitted.step_floor_s == 0.0


def test_the_fit_finds_a_launch_floor() -> None:
    table = msgspec.structs.replace(TABLE, step_fixed_s=0.0, step_floor_s=0.05)
    fitted = fit(timings(table))
    assert fitted.step_floor_s == pytest.approx(0.05, rel=1e-6)
    assert Costs.of(fitted).step_s([LARGE]) == pytest.approx(Costs.of(table).step_s([LARGE]), rel=1e-6)


def test_noisy_timings_give_predictions_within_the_noise() -> None:
    # A relative least squares over 12 steps averages the errors: none of the predictions is off by more.
    fitted, truth = Costs.of(fit(timings(TABLE, noise=0.1))), Costs.of(TABLE)
    for shapes in ([SMALL], [SMALL] * 4, [MIDDLE] * 2, [LARGE], [LARGE, SMALL]):
        assert fitted.step_s(shapes) == pytest.approx(truth.step_s(shapes), rel=0.1)


def test_no_coefficient_is_negative_whatever_was_timed() -> None:
    odd = [timed._replace(seconds=1 / timed.seconds) for timed in timings(TABLE)]
    fitted = fit(odd)
    assert min(value for value in msgspec.structs.astuple(fitted) if isinstance(value, float)) >= 0


def test_a_mixed_step_that_takes_longer_is_found() -> None:
    costs = Costs.of(TABLE)
    mixed = [
        Timed(StepKind.DENOISE, shapes, 1.2 * costs.step_s(shapes))
        for shapes in ((SMALL, LARGE), (SMALL, MIDDLE))
    ]
    assert fit([*timings(TABLE), *mixed]).mixing == pytest.approx(1.2)


def test_one_timing_of_each_kind_gives_costs_that_grow_with_the_picture() -> None:
    shapes = (MIDDLE,)
    costs = Costs.of(fit(Timed(kind, shapes, 1.0) for kind in StepKind if kind is not StepKind.DROP))
    assert costs.step_s([MIDDLE]) == costs.decode_s(MIDDLE) == costs.encode_s([MIDDLE]) == pytest.approx(1.0)
    assert costs.step_s([LARGE]) == pytest.approx(LARGE.rows / MIDDLE.rows)
    assert costs.decode_s(LARGE) == pytest.approx(4.0)


def test_a_kind_that_was_never_timed_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was timed of decode"):
        fit([timed for timed in timings(TABLE) if timed.kind is not StepKind.DECODE])


def test_a_larger_step_stops_paying_where_little_of_it_is_overhead() -> None:
    launch_bound = Costs.of(CostTable(step_floor_s=0.167, row_s=0.0595 / 1024))
    counts = [launch_bound.paying_count(Shape(side, side, txt_rows=0)) for side in (256, 512, 768, 1024)]
    assert counts == [11, 3, 2, 1]
    for shape in (SMALL, MIDDLE):
        costs = Costs.of(TABLE)
        count = costs.paying_count(shape)
        assert TABLE.step_fixed_s / costs.step_s([shape] * count) <= 0.05
        assert TABLE.step_fixed_s / costs.step_s([shape] * (count - 1)) > 0.05


def test_memory_that_ran_out_bounds_the_count() -> None:
    costs = Costs.of(TABLE)
    costs.limit(3 * SMALL.rows)
    costs.limit(5 * SMALL.rows)
    assert costs.paying_count(SMALL) == 3
    assert costs.refined().max_rows == 3 * SMALL.rows


def test_predictions_follow_live_timings_of_their_own_size() -> None:
    costs = Costs.of(TABLE)
    before_s = costs.step_s([LARGE])
    for _ in range(60):
        costs.refine(Timed(StepKind.DENOISE, (SMALL,), 1.5 * Costs.of(TABLE).step_s([SMALL])))
    assert costs.step_s([SMALL]) == pytest.approx(1.5 * Costs.of(TABLE).step_s([SMALL]), rel=0.01)
    assert costs.step_s([LARGE]) == before_s


def test_one_hiccup_hardly_moves_a_prediction() -> None:
    costs = Costs.of(TABLE)
    costs.refine(Timed(StepKind.DECODE, (SMALL,), 1000.0))
    assert costs.decode_s(SMALL) < 1.08 * Costs.of(TABLE).decode_s(SMALL)
    costs.refine(Timed(StepKind.DECODE, (SMALL,), 0.0))  # nothing was measured
    assert costs.decode_s(SMALL) > Costs.of(TABLE).decode_s(SMALL)


def test_what_was_learned_is_in_the_table_that_is_kept() -> None:
    costs = Costs.of(TABLE)
    costs.refine(Timed(StepKind.DENOISE, (SMALL, LARGE), 1.5 * costs.step_s([SMALL, LARGE])))
    again = Costs.of(msgspec.json.decode(msgspec.json.encode(costs.refined()), type=CostTable))
    assert (
        again.step_s([SMALL, LARGE]) == costs.step_s([SMALL, LARGE]) > Costs.of(TABLE).step_s([SMALL, LARGE])
    )
