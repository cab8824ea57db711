"""The batching policy, by example and by a machine that tries to break it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.batcher import Batcher, Entry, Phase, StepKind
from server.generation import Priority

SIZES = ((256, 256), (384, 256), (512, 512))


def entry(
    name: str,
    size: tuple[int, int] = (256, 256),
    *,
    arrived_s: float = 0.0,
    phase: Phase = Phase.DENOISE,
    steps: int = 2,
    priority: Priority = Priority.NORMAL,
    deadline_s: float | None = None,
) -> Entry:
    return Entry(
        id=name,
        width=size[0],
        height=size[1],
        steps=steps,
        arrived_s=arrived_s,
        priority=priority,
        deadline_s=deadline_s,
        phase=phase,
    )


def batcher(*entries: Entry, max_step_tokens: int = 8192) -> Batcher:
    made = Batcher(max_step_tokens)
    for each in entries:
        made.add(each)
    return made


def planned(made: Batcher, now: float = 0.0) -> tuple[str, list[str]] | None:
    step = made.plan(now)
    if step is None:
        return None
    made.complete(step)
    return step.kind.value, [each.id for each in step.entries]


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


def test_all_waiting_texts_are_encoded_together_before_anything_steps() -> None:
    made = batcher(entry("a"), entry("b", phase=Phase.TEXT), entry("c", SIZES[2], phase=Phase.TEXT))
    assert planned(made) == ("encode", ["b", "c"])


def test_pictures_of_one_size_share_a_step_whatever_their_progress() -> None:
    ahead = entry("a", steps=4)
    ahead.steps_done = 3
    made = batcher(ahead, entry("b", steps=1), entry("c", SIZES[1]))
    assert planned(made) == ("denoise", ["a", "b"])


def test_a_newcomer_joins_the_next_step() -> None:
    made = batcher(entry("a", steps=3))
    planned(made)
    made.add(entry("b", arrived_s=1.0))
    assert planned(made) == ("denoise", ["a", "b"])


def test_sizes_take_turns() -> None:
    made = batcher(
        entry("a", SIZES[0], steps=9), entry("b", SIZES[1], steps=9), entry("c", SIZES[2], steps=9)
    )
    turns = [planned(made) for _ in range(6)]
    assert [turn[1] for turn in turns if turn] == [["a"], ["b"], ["c"], ["a"], ["b"], ["c"]]


def test_the_bound_on_tokens_keeps_arrival_order() -> None:
    made = batcher(*(entry(f"r/{i}", arrived_s=float(i)) for i in range(5)), max_step_tokens=3 * 256)
    assert planned(made) == ("denoise", ["r/0", "r/1", "r/2"])


def test_one_picture_may_exceed_the_bound() -> None:
    assert planned(batcher(entry("a", (1536, 1536)), max_step_tokens=256)) == ("denoise", ["a"])


def test_guidance_counts_twice() -> None:
    guided = [entry(name) for name in "ab"]
    for each in guided:
        each.passes = 2
    assert planned(batcher(*guided, max_step_tokens=1023)) == ("denoise", ["a"])


def test_one_finished_picture_is_decoded_before_the_others_step_on() -> None:
    made = batcher(entry("a"), entry("b", phase=Phase.DECODE), entry("c", phase=Phase.DECODE))
    assert planned(made) == ("decode", ["b"])


def test_a_higher_priority_goes_first_and_takes_its_size_along() -> None:
    made = batcher(
        entry("low", SIZES[1], priority=Priority.LOW),
        entry("normal", SIZES[0]),
        entry("high", SIZES[1], priority=Priority.HIGH, arrived_s=5.0),
    )
    assert planned(made) == ("denoise", ["high", "low"])


def test_what_is_too_late_is_dropped_first() -> None:
    made = batcher(entry("a", deadline_s=1.0), entry("b", phase=Phase.TEXT))
    assert planned(made, now=0.5) == ("encode", ["b"])
    assert planned(made, now=1.0) == ("drop", ["a"])
    assert len(made) == 1


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


def test_short_pictures_of_another_size_that_keep_coming_do_not_starve_a_long_one() -> None:
    made = batcher(entry("long", SIZES[0], steps=4))
    turns = []
    for count in range(20):
        if not any(each.size == SIZES[1] for each in made._entries.values()):
            made.add(entry(f"short {count}", SIZES[1], steps=1, arrived_s=float(count)))
        turns.append(planned(made))
    steps_of_long = [turn for turn in turns if turn == ("denoise", ["long"])]
    assert len(steps_of_long) == 4, turns


def test_sizes_that_were_never_seen_do_not_go_before_one_that_waits() -> None:
    made = batcher(entry("long", (256, 256), steps=4))
    turns = []
    for count in range(1, 9):
        made.add(entry(f"new {count}", (256, 256 + 16 * count), steps=4, arrived_s=float(count)))
        turns.append(planned(made))
    assert turns[0] == ("denoise", ["long"])
    assert turns[2] == ("denoise", ["long"]), "one other size was in line when it had stepped"


def test_texts_that_keep_coming_do_not_keep_the_others_from_stepping() -> None:
    made = batcher(entry("a", steps=3))
    turns = []
    for count in range(6):
        made.add(entry(f"text {count}", SIZES[1], steps=9, phase=Phase.TEXT, arrived_s=1.0 + count))
        turns.append(planned(made))
    assert [turn[0] for turn in turns if turn] == ["encode", "denoise"] * 3


class NothingIsLost(RuleBasedStateMachine):
    """Add, cancel and run steps at random: every picture leaves exactly once, and none starves."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = Batcher(max_step_tokens=1024)
        self.now = 0.0
        self.count = 0
        self.inside: dict[str, Entry] = {}
        self.overtaken: dict[tuple[int, int], set[tuple[int, int]]] = {}  # size: those that went before it

    @rule(
        size=st.sampled_from(SIZES),
        steps=st.integers(1, 4),
        life=st.none() | st.floats(0.5, 20),
        priority=st.sampled_from([Priority.NORMAL]),
    )
    def add(self, size: tuple[int, int], steps: int, life: float | None, priority: Priority) -> None:
        self.count += 1
        name = f"r{self.count}/0"
        made = entry(name, size, steps=steps, arrived_s=self.now, phase=Phase.TEXT, priority=priority)
        made.deadline_s = None if life is None else self.now + life
        self.batcher.add(made)
        self.inside[name] = made
        self.overtaken.setdefault(size, set())

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.inside:
            name = data.draw(st.sampled_from(sorted(self.inside)))
            self.batcher.cancel(name)
            del self.inside[name]
            self.forget_sizes()

    @rule()
    def step(self) -> None:
        self.now += 1.0
        step = self.batcher.plan(self.now)
        assert (step is None) == (not self.inside)
        if step is None:
            return
        assert all(each.id in self.inside for each in step.entries)
        if step.kind is StepKind.DENOISE:
            assert len({each.size for each in step.entries}) == 1
            assert len(step.entries) == 1 or step.tokens <= 1024
            oldest = min(
                (
                    each
                    for each in self.inside.values()
                    if each.phase is Phase.DENOISE and each.size == step.entries[0].size
                ),
                key=lambda each: (each.arrived_s, int(each.id[1:-2])),  # by arrival, then as added
            )
            assert oldest in step.entries, "the oldest of a size is in every step of its size"
            self.take_turn(step.entries[0].size)
        for each in self.batcher.complete(step):
            assert self.inside.pop(each.id) is each
        self.forget_sizes()

    def forget_sizes(self) -> None:
        """A size of which nothing is in hand has no place in the line: it comes in hand anew."""
        in_hand = {each.size for each in self.inside.values()}
        self.overtaken = {size: seen for size, seen in self.overtaken.items() if size in in_hand}

    def take_turn(self, size: tuple[int, int]) -> None:
        """Note that `size` stepped; no other size with a picture to denoise may see it step twice."""
        waiting = {each.size for each in self.inside.values() if each.phase is Phase.DENOISE} - {size}
        self.overtaken[size] = set()
        for other in self.overtaken:
            if other not in waiting:
                self.overtaken[other] = set()
            else:
                assert size not in self.overtaken[other], f"{size} stepped twice while {other} waited"
                self.overtaken[other].add(size)

    @invariant()
    def sizes_are_counted(self) -> None:
        assert len(self.batcher) == len(self.inside)

    def teardown(self) -> None:
        for _ in range(8 * len(self.inside) + 1):
            self.step()
        assert not self.inside, "everything leaves in the end"


TestNothingIsLost = NothingIsLost.TestCase
TestNothingIsLost.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
