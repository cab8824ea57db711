"""From timings to the table that made them."""

import random

import msgspec
import pytest

from server.costs import Costs, CostTable, Shape, StepKind, Timed
from server.worker.fitting import fit

SMALL, MIDDLE, LARGE = (Shape(side, side, txt_rows=256) for side in (256, 512, 1024))
TABLE = CostTable(
    step_fixed_s=0.004,
    row_s=2e-5,
    pair_s=1e-9,
    text_fixed_s=0.003,
    text_row_s=1e-5,
    decode_fixed_s=0.001,
    decode_pixel_s=3e-8,
    source_fixed_s=0.002,
    source_pixel_s=1e-8,
)


def timings(table: CostTable, *, noise: float = 0.0) -> list[Timed]:
    """Time steps on a device that is exactly as `table` says, but for noise."""
    costs, chance = Costs.of(table), random.Random(7)

    def timed(kind: StepKind, shapes: tuple[Shape, ...], seconds: float) -> Timed:
        return Timed(kind, shapes, seconds * chance.uniform(1 - noise, 1 + noise))

    made = [timed(StepKind.ENCODE, (SMALL,) * count, costs.encode_s((SMALL,) * count)) for count in (1, 2, 4)]
    for shape in (SMALL, MIDDLE, LARGE):
        started = (shape._replace(has_source=True),)
        made.append(timed(StepKind.ENCODE, started, costs.encode_s(started)))
        made.append(timed(StepKind.DECODE, (shape,), costs.decode_s(shape)))
        for count in (1, 2, 3, 4):
            shapes = (shape,) * count
            made.append(timed(StepKind.DENOISE, shapes, costs.step_s(shapes)))
    return made


def test_the_fit_finds_the_table_that_made_the_timings() -> None:
    fitted = fit(timings(TABLE))
    for name in msgspec.structs.fields(CostTable):
        if isinstance(value := getattr(TABLE, name.name), float):
            assert getattr(fitted, name.name) == pytest.approx(value, rel=1e-6), name


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


@pytest.mark.parametrize(("alone_s", "both_s"), [(0.05, 0.05), (0.06, 0.05), (0.2, 0.05)])
def test_rows_cost_something_where_no_timing_shows_it(alone_s: float, both_s: float) -> None:
    timed = [
        Timed(StepKind.ENCODE, (SMALL,), 0.01),
        Timed(StepKind.DENOISE, (SMALL,), alone_s),
        Timed(StepKind.DENOISE, (SMALL, SMALL), both_s),
        Timed(StepKind.DECODE, (SMALL,), 0.01),
    ]
    costs = Costs.of(fit(timed))
    assert costs.bill(SMALL, steps=4).step_s == pytest.approx(both_s / 2)
    assert costs.step_s((SMALL,)) >= both_s
    assert 0 < costs.efficiency((SMALL,)) <= 1
    assert costs.step_s((SMALL,) * 8) == pytest.approx(4 * both_s)


def test_a_kind_that_was_never_timed_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was timed of decode"):
        fit([timed for timed in timings(TABLE) if timed.kind is not StepKind.DECODE])


def test_sources_need_not_be_timed_and_texts_need_to_without_one() -> None:
    plain = [timed for timed in timings(TABLE) if not any(shape.has_source for shape in timed.shapes)]
    assert fit(plain).source_pixel_s == 0.0
    with pytest.raises(ValueError, match="nothing was timed of encode"):
        fit([timed for timed in timings(TABLE) if timed.kind is not StepKind.ENCODE or timed not in plain])
