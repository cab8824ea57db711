"""Nobody starves and nothing is lost, whatever comes: a stream of each kind, and a machine that tries."""

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from server.batcher import NEXT, ONE_LANE, Batcher, Entry, Lane, Phase, Step
from server.costs import Costs, CostTable, StepKind
from server.generation import Priority
from tests.server.entries import BESIDE, DENOISE, LAUNCH_BOUND, PER_ROW, SIZES, batcher, entry


@pytest.mark.parametrize("stream", ["small", "urgent", "pressed for time", "of many keys"])
@pytest.mark.parametrize("table", [PER_ROW, LAUNCH_BOUND], ids=["per row", "launch bound"])
def test_the_bound_on_waiting_holds_whatever_keeps_coming(stream: str, table: CostTable) -> None:
    """Four others are always in hand while a large picture of low priority waits."""
    made = batcher(table=table)
    victim = entry("victim", SIZES[2], steps=4, phase=Phase.TEXT, priority=Priority.LOW)
    made.add(victim)
    place = made._places["victim"]
    now = work_s = weight = 0.0
    patience, count = -1, 0
    while victim.phase is not Phase.DONE:
        while len(made) < 5:
            count += 1
            another = entry(f"{count}", steps=1, phase=Phase.TEXT)
            another.priority = Priority.HIGH if stream == "urgent" else Priority.NORMAL
            if stream == "pressed for time":
                another.deadline_s = now + 1.2 * made.costs.bill(another.shape, steps=1).alone_s
            another.key = f"key {count}" if stream == "of many keys" else ""
            made.add(another)
        weight = max(weight, made._clock.weight)
        step = made.plan(now)
        assert step is not None
        left_s = {each.entry.id: each.left_s for each in made._places.values()}
        made.complete(step)
        if step.kind is not StepKind.DROP:
            now += 0.01
            patience -= 1
            work_s += sum(
                left_s[each.id] - (made._places[each.id].left_s if each.id in made._places else 0.0)
                for each in step.entries
            )
        if place.share.active:
            assert work_s <= place.bill.total_s / place.share.weight * weight * 1.001
        elif patience < 0:
            waiting = [each.entry for each in made._places.values()]
            patience = 4 * sum(1 + each.steps_left + (each.phase is Phase.TEXT) for each in waiting)
        assert patience != 0, "due, and not done after four times the stages that were in hand"
        assert count < 9999


class NothingIsLost(RuleBasedStateMachine):
    """Add, cancel and run steps at random: every picture leaves exactly once, and none starves."""

    lanes: tuple[Lane, ...] = (ONE_LANE,)

    def __init__(self) -> None:
        super().__init__()
        table = msgspec.structs.replace(LAUNCH_BOUND, step_fixed_s=0.05, step_floor_s=0.4)
        self.batcher = Batcher(Costs.of(table))
        self.now = 0.0
        self.count = 0
        self.inside: dict[str, Entry] = {}
        self.running: dict[Lane, Step] = {}
        self.patience: dict[str, int] = {}  # steps after which one that is due must be done

    @rule(
        size=st.sampled_from(SIZES),
        steps=st.integers(1, 4),
        life=st.none() | st.floats(0.5, 20),
        priority=st.sampled_from(Priority),
        key=st.sampled_from("ab"),
    )
    def add(
        self, size: tuple[int, int], steps: int, life: float | None, priority: Priority, key: str
    ) -> None:
        self.count += 1
        name = f"r{self.count}/0"
        made = entry(name, size, steps=steps, phase=Phase.TEXT, priority=priority, key=key)
        made.deadline_s = None if life is None else self.now + life
        self.batcher.add(made)
        self.inside[name] = made

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.inside:
            name = data.draw(st.sampled_from(sorted(self.inside)))
            self.batcher.cancel(name)
            del self.inside[name]
            self.patience.pop(name, None)

    @rule(data=st.data())
    def turn(self, data: st.DataObject) -> None:
        self.go_on(data.draw(st.sampled_from(self.lanes)))

    def go_on(self, lane: Lane) -> None:
        """End the step of a lane that runs one, else begin one."""
        self.now += 0.25
        if lane in self.running:
            self.end(self.running.pop(lane))
        else:
            self.begin(lane)

    def begin(self, lane: Lane) -> None:
        busy = {each.id for step in self.running.values() for each in step.entries}
        idle = {name for name, each in self.inside.items() if name not in busy and NEXT[each.phase] in lane}
        step = self.batcher.plan(self.now, lane)
        if step is None:
            assert not idle
            return
        assert all(self.inside[each.id] is each and each.id not in busy for each in step.entries)
        self.running[lane] = step
        if step.kind is not StepKind.DROP:
            assert {NEXT[each.phase] for each in step.entries} == {step.kind}
            assert step.kind in lane
            self.patience = {name: left - 1 for name, left in self.patience.items()}

    def end(self, step: Step) -> None:
        for each in self.batcher.complete(step):
            assert self.inside.pop(each.id) is each
            self.patience.pop(each.id, None)
        stages_left = sum(1 + each.steps_left + (each.phase is Phase.TEXT) for each in self.inside.values())
        for name in self.inside:
            if not self.batcher._places[name].share.active:
                self.patience.setdefault(name, 4 * stages_left)

    @invariant()
    def nobody_starves(self) -> None:
        assert all(left > 0 for left in self.patience.values()), "the bound in the batcher's docstring"

    @invariant()
    def entries_are_counted(self) -> None:
        assert len(self.batcher) == len(self.inside)

    def teardown(self) -> None:
        for _ in range(16 * len(self.inside) + 2):
            for lane in self.lanes:
                self.go_on(lane)
        assert not self.inside, "everything leaves in the end"
        assert self.batcher._clock.weight == 0.0


class NothingIsLostInTwoLanes(NothingIsLost):
    lanes = (DENOISE, BESIDE)


TestNothingIsLost = NothingIsLost.TestCase


TestNothingIsLostInTwoLanes = NothingIsLostInTwoLanes.TestCase


TestNothingIsLost.settings = settings(max_examples=40, stateful_step_count=80, deadline=None)


TestNothingIsLostInTwoLanes.settings = TestNothingIsLost.settings
