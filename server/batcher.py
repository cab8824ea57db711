"""The batching policy: which pictures share the next step. Pure: no torch, no clock, no input or output.

The device asks for a step whenever it is free and gets what is waiting; nothing ever waits for a timer.
The step is the unit: pictures join, leave, are cancelled and overtake each other between steps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto

from server.generation import Priority, image_tokens

MAX_TEXTS = 8  # of one encoding: its attention scores grow with them, and nobody steps meanwhile
RANK = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


class Phase(Enum):
    """What a picture needs next."""

    TEXT = auto()
    DENOISE = auto()
    DECODE = auto()
    DONE = auto()


class StepKind(StrEnum):
    """What the device does next. DROP does nothing on it: these pictures are too late to be finished."""

    ENCODE = "encode"
    DENOISE = "denoise"
    DECODE = "decode"
    DROP = "drop"


@dataclass(slots=True)
class Entry:
    """One picture in hand. Times are on the caller's clock, in seconds; `passes` is 2 with guidance."""

    id: str
    width: int
    height: int
    steps: int
    arrived_s: float
    passes: int = 1
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None
    phase: Phase = Phase.TEXT
    steps_done: int = 0

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def tokens(self) -> int:
        """Transformer rows of the image in one step."""
        return image_tokens(self.width, self.height) * self.passes


@dataclass(frozen=True, slots=True)
class Step:
    kind: StepKind
    entries: tuple[Entry, ...]

    @property
    def tokens(self) -> int:
        return sum(entry.tokens for entry in self.entries)


@dataclass(slots=True)
class Batcher:
    """Holds the entries and plans one step at a time.

    `max_step_tokens` bounds the image rows of a denoising step; a single picture may exceed it.

    Order: what is too late leaves first; then texts, since one encoding lets a picture join the next step,
    but not twice in a row while something could be denoised; then one decode, so that a finished picture is
    not held back by those that still step; then a denoising step of one size.

    Sizes take turns: a size that has stepped, or comes in hand, goes to the end of the line, and the first
    in line that has a picture of the highest priority waiting is next. So within one priority every other
    size steps at most once between two steps of a size, and a size that comes in hand beside S others waits
    for at most S steps, whatever comes after it. Within its size a picture waits for those before it that
    fill the bound. A lower priority waits while a higher one has work.
    """

    max_step_tokens: int
    _entries: dict[str, Entry] = field(default_factory=dict)
    _encoded_last: bool = False
    _turns: list[tuple[int, int]] = field(default_factory=list)  # the sizes in hand, the next one first

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry) -> None:
        """Take a picture in hand; its id must be new."""
        assert entry.id not in self._entries, f"{entry.id} is in hand already"
        self._entries[entry.id] = entry
        if entry.size not in self._turns:
            self._turns.append(entry.size)

    def cancel(self, entry_id: str) -> None:
        """Forget a picture, if it is still in hand; a step that it takes part in ends without it."""
        self._entries.pop(entry_id, None)

    def plan(self, now: float) -> Step | None:
        """Return the next step, or None when nothing is in hand."""
        waiting = self._entries.values()
        denoising = [entry for entry in waiting if entry.phase is Phase.DENOISE]
        if late := [entry for entry in waiting if entry.deadline_s is not None and entry.deadline_s <= now]:
            return Step(StepKind.DROP, tuple(late))
        texts = [entry for entry in waiting if entry.phase is Phase.TEXT]
        if texts and not (self._encoded_last and denoising):
            return Step(StepKind.ENCODE, tuple(sorted(texts, key=_order)[:MAX_TEXTS]))
        if decodes := [entry for entry in waiting if entry.phase is Phase.DECODE]:
            return Step(StepKind.DECODE, (min(decodes, key=_order),))
        if denoising:
            return Step(StepKind.DENOISE, self._share(denoising))
        return None

    def complete(self, step: Step, *, failed: Iterable[str] = ()) -> list[Entry]:
        """Record that `step` has run, and return the entries that leave: finished, failed or dropped."""
        lost = set(failed)
        leaving: list[Entry] = []
        if step.kind in (StepKind.ENCODE, StepKind.DENOISE):
            self._encoded_last = step.kind is StepKind.ENCODE
        for entry in step.entries:
            if self._entries.get(entry.id) is not entry:
                continue  # cancelled while the step ran
            if entry.id not in lost:
                _advance(entry, step.kind)
            if entry.id in lost or entry.phase is Phase.DONE:
                del self._entries[entry.id]
                leaving.append(entry)
        self._forget_sizes()
        return leaving

    def _share(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """Choose the size whose turn it is, and as many of its entries as the bound allows, in order."""
        highest = min(RANK[entry.priority] for entry in entries)
        sizes = {entry.size for entry in entries if RANK[entry.priority] == highest}
        size = next(size for size in self._turns if size in sizes)
        self._turns.remove(size)
        self._turns.append(size)
        chosen: list[Entry] = []
        tokens = 0
        for entry in sorted((entry for entry in entries if entry.size == size), key=_order):
            if chosen and tokens + entry.tokens > self.max_step_tokens:
                break
            chosen.append(entry)
            tokens += entry.tokens
        return tuple(chosen)

    def _forget_sizes(self) -> None:
        sizes = {entry.size for entry in self._entries.values()}
        self._turns = [size for size in self._turns if size in sizes]


def _order(entry: Entry) -> tuple[int, float]:
    """Higher priority first, then arrival; at equal times the one that was added first."""
    return RANK[entry.priority], entry.arrived_s


def _advance(entry: Entry, kind: StepKind) -> None:
    match kind:
        case StepKind.ENCODE:
            entry.phase = Phase.DENOISE
        case StepKind.DENOISE:
            entry.steps_done += 1
            if entry.steps_done == entry.steps:
                entry.phase = Phase.DECODE
        case StepKind.DECODE | StepKind.DROP:
            entry.phase = Phase.DONE
