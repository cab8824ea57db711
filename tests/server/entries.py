"""Entries and costs for tests of the batching policy."""

import msgspec

from server.batcher import Batcher, Entry, Lane, Phase
from server.costs import Costs, CostTable, StepKind
from server.generation import Priority

DENOISE: Lane = frozenset({StepKind.DENOISE})


BESIDE: Lane = frozenset({StepKind.ENCODE, StepKind.DECODE})


SIZES = ((256, 256), (384, 256), (512, 512))


# One second for every 1000 rows of a step, whoever shares it; a text takes 0.1 s, a decoder 1 s for 512x512.
PER_ROW = CostTable(row_s=1e-3, text_fixed_s=0.1, decode_pixel_s=1 / 512**2)


# The same, but the first 3000 rows of a step are free company.
LAUNCH_BOUND = msgspec.structs.replace(PER_ROW, step_floor_s=3.0)


def entry(
    name: str,
    size: tuple[int, int] = (256, 256),
    *,
    phase: Phase = Phase.DENOISE,
    steps: int = 2,
    steps_done: int = 0,
    passes: int = 1,
    has_source: bool = False,
    priority: Priority = Priority.NORMAL,
    key: str = "",
    deadline_s: float | None = None,
) -> Entry:
    return Entry(
        id=name,
        width=size[0],
        height=size[1],
        steps=steps,
        steps_done=steps_done,
        arrived_s=0.0,
        txt_rows=0,
        passes=passes,
        has_source=has_source,
        priority=priority,
        key=key,
        deadline_s=deadline_s,
        phase=phase,
    )


def batcher(*entries: Entry, table: CostTable = LAUNCH_BOUND) -> Batcher:
    made = Batcher(Costs.of(table))
    for each in entries:
        made.add(each)
    return made


def planned(made: Batcher, now: float = 0.0) -> tuple[str, list[str]] | None:
    step = made.plan(now)
    if step is None:
        return None
    made.complete(step)
    return step.kind.value, [each.id for each in step.entries]
