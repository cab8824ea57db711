"""The cost model: what it predicts, what it learns from timings, and where a larger step stops paying."""

import msgspec
import pytest

from server.costs import SOURCE_OF_DECODE, Costs, CostTable, Shape, StepKind, Timed

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


def test_a_source_is_encoded_with_the_text_whoever_shares_that() -> None:
    costs = Costs.of(msgspec.structs.replace(TABLE, source_fixed_s=0.002, source_pixel_s=1e-8))
    source_s = 0.002 + 512 * 512 * 1e-8
    started = MIDDLE._replace(has_source=True)
    assert costs.source_s(MIDDLE) == 0.0
    assert costs.encode_s([started, MIDDLE]) == pytest.approx(costs.encode_s([MIDDLE] * 2) + source_s)
    plain, bill = costs.bill(MIDDLE, steps=2), costs.bill(started, steps=2)
    assert bill.source_s == pytest.approx(source_s)
    assert bill.total_s == pytest.approx(plain.total_s + source_s)
    assert bill.step_s == plain.step_s


def test_who_brings_only_a_text_does_not_pay_for_a_source_beside_it() -> None:
    costs = Costs.of(TABLE)
    started = SMALL._replace(has_source=True)
    alone = [costs.encode_s([shape]) for shape in (started, SMALL)]
    parts = costs.parts(StepKind.ENCODE, [started, SMALL])
    assert parts == pytest.approx([each / sum(alone) for each in alone])
    assert costs.parts(StepKind.ENCODE, [SMALL, MIDDLE]) == pytest.approx([1 / 5, 4 / 5])
    assert costs.parts(StepKind.DENOISE, [started, SMALL]) == [0.5, 0.5]


def test_a_source_that_was_never_timed_takes_a_part_of_a_decode() -> None:
    """Tables that were kept before there were sources have no figures for them."""
    kept = msgspec.json.decode(b'{"decode_pixel_s": 3e-8, "text_fixed_s": 0.003}', type=CostTable)
    costs = Costs.of(kept)
    assert costs.source_s(LARGE._replace(has_source=True)) == SOURCE_OF_DECODE * costs.decode_s(LARGE) > 0


def test_live_timings_of_sources_move_neither_texts_nor_decodes() -> None:
    costs, started = Costs.of(TABLE), SMALL._replace(has_source=True)
    before_s = costs.source_s(started)
    for _ in range(60):
        costs.refine(Timed(StepKind.ENCODE, (started, SMALL), 2 * costs.encode_s([started, SMALL])))
    assert costs.source_s(started) > 2 * before_s
    assert costs.encode_s([SMALL]) == Costs.of(TABLE).encode_s([SMALL])
    assert costs.decode_s(SMALL) == Costs.of(TABLE).decode_s(SMALL)


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
