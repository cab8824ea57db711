"""The batching policy, by example."""

import msgspec
import pytest

from server.batcher import Lane, Phase
from server.costs import CostTable, Shape
from server.generation import Priority
from tests.server.entries import BESIDE, DENOISE, LAUNCH_BOUND, PER_ROW, SIZES, batcher, entry, planned


def test_nothing_in_hand_means_no_step() -> None:
    assert batcher().plan(0.0) is None


def test_a_picture_goes_through_its_stages_and_leaves() -> None:
    made = batcher(entry("a", phase=Phase.TEXT))
    assert [planned(made) for _ in range(5)] == [
        ("encode", ["a"]),
        ("denoise", ["a"]),
        ("denoise", ["a"]),
        ("decode", ["a"]),
        None,
    ]
    assert len(made) == 0


# Order


def test_small_work_goes_first() -> None:
    made = batcher(entry("large", SIZES[2]), entry("small", SIZES[0]), table=PER_ROW)
    assert [planned(made) for _ in range(4)] == [
        ("denoise", ["small"]),
        ("denoise", ["small"]),
        ("decode", ["small"]),
        ("denoise", ["large"]),
    ]


def test_few_steps_are_small_work_too() -> None:
    made = batcher(entry("long", steps=12), entry("short", steps=1), table=PER_ROW)
    assert planned(made) == ("denoise", ["short"])


def test_what_is_begun_goes_before_what_is_not() -> None:
    made = batcher(entry("new", steps=4), entry("begun", steps=4, steps_done=1), table=PER_ROW)
    assert planned(made) == ("denoise", ["begun"])


def test_a_finished_picture_is_decoded_alone_before_the_others_step_on() -> None:
    made = batcher(entry("a"), entry("b", phase=Phase.DECODE), entry("c", phase=Phase.DECODE))
    assert planned(made) == ("decode", ["b"])


def test_a_decode_does_not_hold_up_what_is_more_urgent() -> None:
    made = batcher(
        entry("urgent", priority=Priority.HIGH),
        entry("low", (1024, 1024), phase=Phase.DECODE, priority=Priority.LOW),
    )
    assert planned(made) == ("denoise", ["urgent"])


def test_priorities_are_weights() -> None:
    names = {Priority.LOW: "low", Priority.NORMAL: "normal", Priority.HIGH: "high"}
    made = batcher(*(entry(name, priority=priority) for priority, name in names.items()), table=PER_ROW)
    leaders = [planned(made) for _ in range(9)]
    assert [each[1] for each in leaders if each] == [["high"]] * 3 + [["normal"]] * 3 + [["low"]] * 3


def test_a_low_priority_waits_longer_and_not_for_ever() -> None:
    made = batcher(entry("low", priority=Priority.LOW, steps=1), entry("normal", steps=1), table=PER_ROW)
    for count in range(200):
        if (step := planned(made)) == ("denoise", ["low"]):
            break
        if step and step[0] == "decode":
            made.add(entry(f"normal {count}", steps=1))
    assert 8 < count < 199, "at a quarter of the weight, behind four others of two stages at least"


def test_a_key_with_one_picture_does_not_wait_for_one_with_many() -> None:
    made = batcher(*(entry(f"crowd {n}", key="crowd") for n in range(50)), table=PER_ROW)
    planned(made)
    made.add(entry("lone", key="lone"))
    assert planned(made) == ("denoise", ["lone"])


def test_keys_take_turns_when_both_have_much_to_do() -> None:
    made = batcher(*(entry(f"a{n}", key="a", steps=1) for n in range(40)), table=PER_ROW)
    for n in range(10):
        made.add(entry(f"b{n}", key="b", steps=1))
    done = [step[1][0][0] for _ in range(40) if (step := planned(made)) and step[0] == "decode"]
    assert 0.35 <= done.count("b") / len(done) <= 0.65


# Company


def test_pictures_of_any_size_and_progress_share_a_step_where_that_is_free() -> None:
    made = batcher(entry("a", steps=4, steps_done=3), entry("b", steps=1), entry("c", SIZES[2]))
    assert planned(made) == ("denoise", ["a", "b", "c"])


def test_a_newcomer_joins_the_next_step() -> None:
    made = batcher(entry("a", steps=3))
    planned(made)
    made.add(entry("b", steps=3))
    assert planned(made) == ("denoise", ["a", "b"])


@pytest.mark.parametrize(
    ("floor_s", "mixing", "together"),
    [(1.5, 1.0, "abc"), (1.5, 1.4, "abc"), (0.5, 1.0, "ac"), (0.5, 1.1, "ab")],
)
def test_several_sizes_or_one_whichever_gets_more_done(floor_s: float, mixing: float, together: str) -> None:
    table = CostTable(row_s=1e-3, step_floor_s=floor_s, mixing=mixing)
    made = batcher(entry("a"), entry("c", SIZES[2], steps=1), entry("b", steps=4), table=table)
    step = made.plan(0.0)
    assert step is not None
    assert sorted(each.id for each in step.entries) == list(together)


def test_nobody_joins_where_steps_are_no_cheaper_together() -> None:
    assert planned(batcher(*(entry(name) for name in "abc"), table=PER_ROW)) == ("denoise", ["a"])


@pytest.mark.parametrize("side", [256, 512, 768, 1024])
def test_a_launch_bound_step_grows_to_where_it_stops_paying(side: int) -> None:
    made = batcher(*(entry(f"{n}", (side, side)) for n in range(40)))
    step = made.plan(0.0)
    assert step is not None
    assert len(step.entries) == made.costs.paying_count(Shape(side, side, txt_rows=0))


def test_the_more_are_waiting_the_larger_a_step() -> None:
    table = CostTable(row_s=1e-3, step_fixed_s=0.02)
    together = []
    for count in (2, 8, 32, 128):
        step = batcher(*(entry(f"{n}") for n in range(count)), table=table).plan(0.0)
        assert step is not None
        together.append(len(step.entries))
    assert together == sorted(together)
    assert together[0] == 1, "two pictures, one after the other, are done sooner on average"
    assert together[-1] >= 4


def test_guidance_counts_twice() -> None:
    plain, guided = (batcher(*(entry(n, SIZES[2], passes=p) for n in "abcdef")) for p in (1, 2))
    steps = plain.plan(0.0), guided.plan(0.0)
    assert [len(step.entries) for step in steps if step] == [3, 2]


def test_no_step_has_more_rows_than_the_device_has_memory_for() -> None:
    made = batcher(*(entry(name) for name in "abcde"), entry("large", SIZES[2]))
    made.costs.limit(3 * 256)
    assert planned(made) == ("denoise", ["a", "b", "c"])
    alone = batcher(entry("large", SIZES[2]))
    alone.costs.limit(256)
    assert planned(alone) == ("denoise", ["large"]), "one picture may exceed it"


# Texts


def test_texts_of_those_who_share_the_next_step_are_encoded_before_it() -> None:
    made = batcher(entry("a"), entry("b", phase=Phase.TEXT), entry("c", SIZES[2], phase=Phase.TEXT))
    assert planned(made) == ("encode", ["b", "c"])
    assert planned(made) == ("denoise", ["a", "b", "c"])


def test_a_text_that_joins_no_step_waits_until_it_does() -> None:
    made = batcher(entry("small"), entry("large", SIZES[2], phase=Phase.TEXT), table=PER_ROW)
    kinds = [step[0] for _ in range(4) if (step := planned(made))]
    assert kinds == ["denoise", "denoise", "decode", "encode"]


def test_more_texts_come_along_where_an_encoding_has_a_fixed_cost() -> None:
    for fixed_s, together in ((0.1, 8), (0.0, 1)):
        table = msgspec.structs.replace(PER_ROW, text_fixed_s=fixed_s, text_row_s=1e-3)
        made = batcher(*(entry(f"{n}", SIZES[2], phase=Phase.TEXT) for n in range(9)), table=table)
        assert planned(made) == ("encode", [str(n) for n in range(together)])


@pytest.mark.parametrize(("source_s", "first"), [(1.0, "encode"), (10.0, "denoise")])
def test_a_step_waits_for_a_source_where_sharing_it_saves_more(source_s: float, first: str) -> None:
    table = msgspec.structs.replace(LAUNCH_BOUND, source_fixed_s=source_s)
    started = entry("started", SIZES[1], phase=Phase.TEXT, has_source=True)
    step = planned(batcher(entry("stepping"), started, table=table))
    assert step is not None
    assert step[0] == first


def test_a_source_that_waits_keeps_no_text_behind_it_from_coming_along() -> None:
    table = msgspec.structs.replace(PER_ROW, source_fixed_s=10.0)
    texts = [entry(name, phase=Phase.TEXT) for name in ("first", "last")]
    started = entry("started", phase=Phase.TEXT, has_source=True, steps=1)
    made = batcher(texts[0], started, texts[1], table=table)
    assert planned(made) == ("encode", ["first", "last"])


@pytest.mark.parametrize(("source_s", "together"), [(7.0, ["text", "started"]), (10.0, ["text"])])
def test_a_source_that_comes_along_saves_only_what_its_text_saves(
    source_s: float, together: list[str]
) -> None:
    """Half a second of the fixed one, which is worth eight."""
    table = msgspec.structs.replace(PER_ROW, text_fixed_s=1.0, text_row_s=1e-5, source_fixed_s=source_s)
    text = entry("text", phase=Phase.TEXT)
    started = entry("started", SIZES[2], phase=Phase.TEXT, has_source=True)
    text.txt_rows = started.txt_rows = 64
    assert planned(batcher(text, started, table=table)) == ("encode", together)


def test_texts_that_keep_coming_do_not_keep_the_others_from_stepping() -> None:
    made = batcher(entry("a", steps=3))
    turns = []
    for count in range(6):
        made.add(entry(f"text {count}", SIZES[1], steps=9, phase=Phase.TEXT))
        turns.append(planned(made))
    assert [turn[0] for turn in turns if turn] == ["encode", "denoise"] * 3


# Deadlines


def test_what_is_too_late_is_dropped_first() -> None:
    made = batcher(entry("late", deadline_s=9.0), entry("b"), table=PER_ROW)
    assert planned(made, now=9.0) == ("drop", ["late"])
    assert len(made) == 1


def test_what_cannot_be_done_in_time_even_alone_is_dropped_at_once() -> None:
    # 0.1 s of text, two steps of 1.024 s and 1 s of decoding
    hopeless, hopeful = (
        entry(n, SIZES[2], phase=Phase.TEXT, deadline_s=d) for n, d in (("a", 2.7), ("b", 3.4))
    )
    made = batcher(hopeless, hopeful, table=PER_ROW)
    assert planned(made) == ("drop", ["a"])
    assert planned(made) == ("encode", ["b"])


def test_the_earliest_deadline_goes_first_among_those_that_would_miss_it() -> None:
    made = batcher(
        *(entry(f"small {n}") for n in range(9)),
        entry("later", SIZES[2], deadline_s=9.0),
        entry("sooner", SIZES[2], deadline_s=6.5),
        entry("calm", SIZES[2], deadline_s=99.0),
        table=PER_ROW,
    )
    assert planned(made) == ("denoise", ["sooner"])


def test_a_deadline_that_will_be_met_anyway_changes_nothing() -> None:
    made = batcher(entry("small"), entry("large", SIZES[2], deadline_s=99.0), table=PER_ROW)
    assert planned(made) == ("denoise", ["small"])


def test_deadlines_lead_every_second_step_at_most() -> None:
    made = batcher(entry("patient", steps=3), table=PER_ROW)
    leaders = []
    for count in range(6):
        made.add(entry(f"pressing {count}", SIZES[2], steps=9, deadline_s=11.0))
        step = planned(made)
        leaders.append(step[1][0].split()[0] if step else "")
    assert leaders == ["pressing", "patient"] * 3


def test_nobody_joins_who_would_make_a_deadline_fail() -> None:
    fixed = msgspec.structs.replace(PER_ROW, step_fixed_s=1.0)  # sharing pays a lot
    others = [entry(f"{n}", SIZES[2]) for n in range(5)]
    for deadline_s, company in ((99.0, True), (2 * 1.256 + 0.25 + 1.0, False)):
        step = batcher(entry("pressing", deadline_s=deadline_s), *others, table=fixed).plan(0.0)
        assert step is not None
        assert step.entries[0].id == "pressing"
        assert (len(step.entries) > 1) == company


# Leaving, and more than one step at a time


def test_a_cancelled_picture_is_forgotten() -> None:
    made = batcher(entry("a"), entry("b"))
    made.cancel("a")
    made.cancel("never heard of")
    assert planned(made) == ("denoise", ["b"])


def test_a_failed_picture_leaves_and_its_neighbour_goes_on() -> None:
    made = batcher(entry("a"), entry("b"))
    step = made.plan(0.0)
    assert step is not None
    assert [each.id for each in made.complete(step, failed={"a"})] == ["a"]
    assert planned(made) == ("denoise", ["b"])


def test_a_picture_cancelled_while_it_steps_leaves_no_trace() -> None:
    made = batcher(entry("a", steps=1), entry("b", steps=1))
    step = made.plan(0.0)
    assert step is not None
    made.cancel("a")
    assert made.complete(step, failed={"a"}) == []
    assert planned(made) == ("decode", ["b"])
    assert len(made) == 0


def test_an_id_may_come_again_while_its_cancelled_step_runs() -> None:
    made = batcher(entry("a", phase=Phase.DECODE))
    step = made.plan(0.0)
    assert step is not None
    made.cancel("a")
    again = entry("a", phase=Phase.TEXT)
    made.add(again)
    assert made.complete(step) == []
    assert again.phase is Phase.TEXT
    assert planned(made) == ("encode", ["a"])


def test_others_can_step_while_a_picture_is_decoded_elsewhere() -> None:
    made = batcher(entry("done", phase=Phase.DECODE), entry("b", steps=1))
    decode = made.plan(0.0)
    step = made.plan(0.0)
    assert decode is not None
    assert step is not None
    assert [each.id for each in decode.entries] == ["done"]
    assert [each.id for each in step.entries] == ["b"]
    assert made.plan(0.0) is None, "everybody is in a step"
    made.complete(step)
    assert planned(made) == ("decode", ["b"])
    assert [each.id for each in made.complete(decode)] == ["done"]


def test_a_lane_takes_steps_of_its_kinds_only() -> None:
    made = batcher(
        entry("stepping"), entry("new", phase=Phase.TEXT), entry("nearly done", phase=Phase.DECODE)
    )
    kinds = [made.plan(0.0, lane) for lane in (DENOISE, BESIDE, BESIDE, DENOISE, BESIDE)]
    assert [step and step.kind for step in kinds] == ["denoise", "decode", "encode", None, None]


def test_deadlines_lead_every_second_step_of_each_lane() -> None:
    """Were the turns counted over all lanes, one lane would rescue always and the other never."""
    made = batcher(entry("patient", steps=9), table=PER_ROW)
    for count in range(9):
        made.add(entry(f"patient {count}", phase=Phase.DECODE))
    leaders: dict[Lane, list[str]] = {BESIDE: [], DENOISE: []}
    for count in range(4):
        made.add(entry(f"pressing {count}", SIZES[2], steps=9, deadline_s=11.0))
        made.add(entry(f"pressing too {count}", SIZES[2], phase=Phase.DECODE, deadline_s=1.2))
        for lane, led in leaders.items():
            step = made.plan(0.0, lane)
            assert step is not None
            led.append(step.entries[0].id.split()[0])
            made.complete(step)
    assert leaders == {BESIDE: ["pressing", "patient"] * 2, DENOISE: ["pressing", "patient"] * 2}
