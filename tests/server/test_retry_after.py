"""What a refused client is told proves right: the real admission and batcher on a virtual clock."""

import math
import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.admission import Admission, Admitted
from server.batcher import Batcher, Entry, Step
from server.costs import Costs, CostTable, StepKind
from server.errors import Overloaded
from server.generation import Priority
from tests.server.test_admission import COSTS, MODEL, image

# A third of a small picture's step is paid whatever its rows, and its text is not free.
FIXED = CostTable(
    step_fixed_s=0.1,
    row_s=COSTS.row_s,
    decode_pixel_s=COSTS.decode_pixel_s,
    text_fixed_s=0.02,
)
MAX_BACKLOG_S = 10.0
REFUSALS = 40


@dataclass
class World:
    """One device that takes `slowness` times what its table says, and the door in front of it."""

    table: CostTable
    slowness: float
    now: float = 0.0
    came: int = 0
    in_hand: dict[str, Admitted] = field(default_factory=dict)
    device_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.costs = Costs.of(self.table)
        self.batcher = Batcher(Costs.of(self.table))
        self.admission = Admission(MAX_BACKLOG_S)
        self.admission.start_from(self.table)

    def ask(self, wanted: dict[str, Any], deadline_s: float | None = None) -> None:
        """Let a picture in, or raise `Overloaded`."""
        asked = image(**wanted)
        (admitted,) = self.admission.admit([asked], MODEL, workers=1, deadline_s=deadline_s)
        self.came += 1
        entry = Entry(
            id=str(self.came),
            width=asked.width,
            height=asked.height,
            steps=asked.steps,
            arrived_s=self.now,
            txt_rows=asked.max_sequence_length,
            priority=asked.priority,
        )
        self.batcher.add(entry)
        self.in_hand[entry.id], self.device_s[entry.id] = admitted, 0.0

    def step(self) -> None:
        """Run the next step and tell admission what the engine would."""
        step = self.batcher.plan(self.now)
        assert step is not None, "nothing is in hand, and still it was refused"
        seconds = self.slowness * self._table_s(step)
        self.now += seconds
        for entry in step.entries:
            self.device_s[entry.id] += seconds * entry.tokens / step.tokens
            self.admission.progress(self.in_hand[entry.id], step.kind)
        for entry in self.batcher.complete(step):
            admitted = self.in_hand.pop(entry.id)
            self.admission.observe(admitted, self.device_s.pop(entry.id))
            self.admission.release(admitted, finished=True)

    def _table_s(self, step: Step) -> float:
        shapes = [entry.shape for entry in step.entries]
        match step.kind:
            case StepKind.ENCODE:
                return self.costs.encode_s(shapes)
            case StepKind.DENOISE:
                return self.costs.step_s(shapes)
            case _:
                return sum(self.costs.decode_s(shape) for shape in shapes)


def draw(chance: random.Random) -> dict[str, Any]:
    side = chance.choice((256, 512, 768))
    steps, priority = chance.choice((1, 2, 4)), chance.choice(list(Priority))
    return {"width": side, "height": side, "steps": steps, "priority": priority}


def told_and_was(world: World, chance: random.Random, *, with_deadline: bool) -> tuple[float, float] | None:
    """Overload a server, then let no more come: what is a refused client told, and when is it let in?

    None where the last one was not refused.
    """
    until_s = world.now + chance.uniform(5, 20)
    while world.now < until_s:
        try:
            while True:
                world.ask(draw(chance))
        except Overloaded:
            world.step()
    wanted, deadline_s = draw(chance), None
    if with_deadline:
        finish_s = world.admission.forecast_s(image(**wanted), MODEL, workers=1)
        deadline_s = chance.uniform(0.2, 1.0) * finish_s
    try:
        world.ask(wanted, deadline_s)
    except Overloaded as refused:
        told_s, refused_at = refused.retry_after_s or 0.0, world.now
    else:
        return None
    while True:
        world.step()
        try:
            world.ask(wanted, deadline_s)
        except Overloaded:
            continue
        return told_s, world.now - refused_at


@pytest.mark.parametrize("with_deadline", [False, True], ids=["full", "deadline"])
@pytest.mark.parametrize("slowness", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("table", [COSTS, FIXED], ids=["rows", "fixed"])
def test_retry_after_is_right_within_a_factor_of_two(
    table: CostTable, slowness: float, with_deadline: bool
) -> None:
    """For nine of ten refused clients, in whole seconds from 1 on, since the header has these."""
    chance, world = random.Random(5), World(table, slowness)
    while world.now < 50:  # until the pace is known
        told_and_was(world, chance, with_deadline=with_deadline)
    found: list[tuple[float, float]] = []
    while len(found) < REFUSALS:
        if each := told_and_was(world, chance, with_deadline=with_deadline):
            found.append(each)
    right = [0.5 <= told_s / max(1, math.ceil(was_s)) <= 2 for told_s, was_s in found]
    assert sum(right) >= 0.9 * len(found), found
    assert max(was_s for _, was_s in found) > 3, "some had to wait for long"
