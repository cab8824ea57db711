"""The batching policy: which pictures share the next step. Pure: no torch, no clock, no input or output.

The device asks for a step whenever it is free and gets what is waiting; nothing ever waits for a timer.
The step is the unit: pictures join, leave, are cancelled and overtake each other between steps.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from server.costs import Bill, Costs, Shape, StepKind
from server.fairness import FairClock, Share, weigh
from server.generation import Priority, image_tokens

MAX_TEXTS: Final = 8  # of one encoding: its attention scores grow with them, and nobody steps meanwhile
FORESIGHT: Final = 16.0  # a device-second saved is worth so many lost: it also helps those still to come
SURELY: Final = 0.9  # what cannot be done in this part of its predicted time is given up

Lane = frozenset[StepKind]  # the kinds of step that are run one after another
ONE_LANE: Final[Lane] = frozenset(StepKind)


class Phase(Enum):
    """What a picture needs next."""

    TEXT = auto()
    DENOISE = auto()
    DECODE = auto()
    DONE = auto()


NEXT: Final = {
    Phase.TEXT: StepKind.ENCODE,
    Phase.DENOISE: StepKind.DENOISE,
    Phase.DECODE: StepKind.DECODE,
}


@dataclass(slots=True)
class Entry:
    """One picture in hand. Times are on the caller's clock, in seconds; `passes` is 2 with guidance.

    `steps` are those that run. `has_source` means that a picture to start from is encoded with its text.
    `key` is whose picture it is: keys share the device evenly.
    """

    id: str
    width: int
    height: int
    steps: int
    arrived_s: float
    txt_rows: int
    passes: int = 1
    has_source: bool = False
    priority: Priority = Priority.NORMAL
    key: str = ""
    deadline_s: float | None = None
    phase: Phase = Phase.TEXT
    steps_done: int = 0

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    @property
    def shape(self) -> Shape:
        return Shape(self.width, self.height, self.txt_rows, self.passes, self.has_source)

    @property
    def tokens(self) -> int:
        """Transformer rows of the image in one step."""
        return image_tokens(self.width, self.height) * self.passes

    @property
    def steps_left(self) -> int:
        return self.steps - self.steps_done


@dataclass(frozen=True, slots=True)
class Step:
    kind: StepKind
    entries: tuple[Entry, ...]

    @property
    def tokens(self) -> int:
        return sum(entry.tokens for entry in self.entries)


@dataclass(eq=False, slots=True)
class _Place:
    """An entry's place in the order. Costs are device-seconds as predicted when it came."""

    entry: Entry
    bill: Bill
    share: Share
    running: bool = False
    made_way: bool = False  # it could have stepped, and let an encoding go first
    joined_s: float = 0.0  # what its share counts on
    left_s: float = 0.0
    rank: float = 0.0  # lower goes first: when it is due, less what is done of it already

    def settle(self) -> float:
        """Account for what its entry has done; return the device-seconds that this was."""
        entry, bill, before_s = self.entry, self.bill, self.left_s
        match entry.phase:
            case Phase.TEXT:
                self.left_s = bill.total_s
            case Phase.DENOISE:
                self.left_s = entry.steps_left * bill.step_s + bill.decode_s
            case Phase.DECODE:
                self.left_s = bill.decode_s
            case Phase.DONE:
                self.left_s = 0.0
        self.rank = self.share.due - (self.joined_s - self.left_s) / self.share.weight
        return before_s - self.left_s

    @property
    def alone_s(self) -> float:
        """Seconds until the picture is done if nothing else runs."""
        bill, phase = self.bill, self.entry.phase
        text_s = bill.text_s if phase is Phase.TEXT else 0.0
        steps_s = 0.0 if phase is Phase.DECODE else self.entry.steps_left * bill.alone_step_s
        return text_s + steps_s + bill.decode_s


@dataclass(slots=True)
class Batcher:
    """Holds the entries and plans one step at a time for each lane.

    **Lanes.** A device may run one step after another, or encode and decode beside its denoising: whoever
    drives it asks for a step of those kinds that its lane takes, whenever the lane is free.

    **Order.** As they would finish if the device were shared among all at once, by weight: small work first,
    larger work later but not last, what is nearly done before what is not begun. An entry weighs by its
    priority and a little by its size, and the entries of a key together weigh as much as those of any other
    key in hand. Whoever is first in this order decides what happens next, so a decode or an encoding never
    holds up pictures that are due earlier.

    **Company.** Others join the first one's step, in the same order, where by the cost table that saves the
    device more than it costs those in the step: few where steps are no cheaper together, more the more are
    waiting, of several sizes or of one, whichever gets more done. Nobody joins who would make another's
    deadline fail, nor beyond the rows that the device has memory for.

    **Deadlines.** Entries that would miss theirs in this order go first, the earliest deadline before the
    others, in every second step at most. What cannot be done in time even alone is dropped.

    **Nobody starves.** Take an entry that costs c seconds and weighs w. Once the device has done c / w * W
    seconds of work after it came, W being the largest weight in hand meanwhile, it is due, and no newcomer
    goes before it in the order. Two steps in a row are not led by deadlines, nor does who is first make way
    for an encoding twice: so, counting the stages that those in hand when it is due have still to run, it is
    done at the latest after four times as many steps.
    """

    costs: Costs
    _places: dict[str, _Place] = field(default_factory=dict)
    _clock: FairClock = field(default_factory=FairClock)
    _rescued_last: set[Lane] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._places)

    def add(self, entry: Entry) -> None:
        """Take a picture in hand; its id must be new."""
        assert entry.id not in self._places, f"{entry.id} is in hand already"
        bill = self.costs.bill(entry.shape, steps=entry.steps)
        asked = weigh(entry.priority, bill.total_s)
        share = self._clock.join(key=entry.key, cost_s=bill.total_s, weight=asked)
        place = _Place(entry, bill, share, joined_s=bill.total_s)
        place.settle()
        self._places[entry.id] = place

    def revise(self, entry_id: str, *, priority: Priority, deadline_s: float | None) -> None:
        """Change the priority and the deadline of a picture, if it is in hand, for what is left of it."""
        if (place := self._places.get(entry_id)) is None:
            return
        entry = place.entry
        entry.deadline_s = deadline_s
        if priority is not entry.priority:
            entry.priority = priority
            self._clock.leave(place.share, left_s=place.left_s)
            asked = weigh(priority, place.bill.total_s)
            place.share = self._clock.join(key=entry.key, cost_s=place.left_s, weight=asked)
            place.joined_s = place.left_s
            place.settle()

    def cancel(self, entry_id: str) -> bool:
        """Forget a picture, if it is still in hand; a step that it takes part in ends without it.

        Returns whether there is such a step.
        """
        if place := self._places.pop(entry_id, None):
            self._clock.leave(place.share, left_s=place.left_s)
        return place is not None and place.running

    def plan(self, now: float, lane: Lane = ONE_LANE) -> Step | None:
        """Return the next step of `lane`, or None when all that it could take is in a step already."""
        idle = [place for place in self._places.values() if not place.running]
        if late := [place for place in idle if self._is_hopeless(place, now)]:
            return self._begin(StepKind.DROP, late)
        order = sorted((place for place in idle if NEXT[place.entry.phase] in lane), key=_rank)
        if not order:
            return None
        order = self._rescue(order, now, lane)
        first = order[0]
        if first.entry.phase is Phase.DECODE:
            return self._begin(StepKind.DECODE, [first])
        if not first.made_way and (texts := self._texts(order, now)):
            first.made_way = first.entry.phase is Phase.DENOISE
            return self._begin(StepKind.ENCODE, texts)
        first.made_way = False
        return self._begin(StepKind.DENOISE, self._company(order, Phase.DENOISE, now=now))

    def complete(self, step: Step, *, failed: Iterable[str] = ()) -> list[Entry]:
        """Record that `step` has run, and return the entries that leave: finished, failed or dropped."""
        lost = set(failed)
        leaving: list[Entry] = []
        for entry in step.entries:
            place = self._places.get(entry.id)
            if place is None or place.entry is not entry:
                continue  # cancelled while the step ran
            place.running = False
            if entry.id in lost or step.kind is StepKind.DROP:
                self.cancel(entry.id)
                leaving.append(entry)
                continue
            _advance(entry, step.kind)
            self._clock.advance(place.settle())
            if entry.phase is Phase.DONE:
                del self._places[entry.id]
                leaving.append(entry)
        return leaving

    def _begin(self, kind: StepKind, places: Sequence[_Place]) -> Step:
        for place in places:
            place.running = True
        return Step(kind, tuple(place.entry for place in places))

    def _is_hopeless(self, place: _Place, now: float) -> bool:
        deadline_s = place.entry.deadline_s
        return deadline_s is not None and now + SURELY * place.alone_s >= deadline_s

    def _rescue(self, order: list[_Place], now: float, lane: Lane) -> list[_Place]:
        """Put those that would miss their deadline in front; in every second step behind the first."""
        ahead_s = 0.0
        missing: list[_Place] = []
        for place in order:
            deadline_s = place.entry.deadline_s
            if deadline_s is not None and now + ahead_s + place.alone_s > deadline_s:
                missing.append(place)
            ahead_s += place.left_s
        if not missing:
            self._rescued_last.discard(lane)
            return order
        missing.sort(key=_deadline)
        self._rescued_last ^= {lane}
        front = missing if lane in self._rescued_last else [order[0], *missing]
        return list(dict.fromkeys([*front, *order]))

    def _texts(self, order: Sequence[_Place], now: float) -> list[_Place]:
        """Choose the texts to encode before the next step: of those who join it, and what pays to add.

        Sharing saves a text its part of the fixed cost; sources are encoded one by one, which saves nothing.
        """
        company = self._company(order, Phase.TEXT, Phase.DENOISE, now=now)
        chosen = [place for place in company if place.entry.phase is Phase.TEXT][:MAX_TEXTS]
        if not chosen:
            return []
        fixed_s = self.costs.table.text_fixed_s

        def own_s(place: _Place) -> float:
            return max(0.0, place.bill.text_s - place.bill.source_s - fixed_s)

        rows_s = sum(own_s(place) for place in chosen)
        for place in order:
            if len(chosen) == MAX_TEXTS:
                break
            if place.entry.phase is not Phase.TEXT or place in chosen:
                continue
            row_s = own_s(place)
            saved_s = fixed_s * _part(row_s, rows_s + row_s)
            if self._pays(saved_s, row_s + place.bill.source_s, kept=len(company)):
                chosen.append(place)
                rows_s += row_s
        return chosen

    def _pays(self, saved_s: float, lost_s: float, *, kept: int) -> bool:
        """Whether it is worth making `kept` pictures wait `lost_s` longer to save the others `saved_s`."""
        return FORESIGHT * (len(self._places) - kept) * saved_s > kept * lost_s

    def _company(self, order: Sequence[_Place], *phases: Phase, now: float) -> list[_Place]:
        """Choose who steps with the first of `order`, of those in `phases`.

        They are of any size, or only of its own where that gets more done in a second.
        """
        others = [place for place in order[1:] if place.entry.phase in phases]
        mixed = self._gather(order[0], others, now)
        if self.costs.table.mixing == 1 or len({place.entry.size for place in mixed}) == 1:
            return mixed
        size = order[0].entry.size
        alike = self._gather(order[0], [place for place in others if place.entry.size == size], now)
        return max(mixed, alike, key=self._speed)

    def _gather(self, first: _Place, others: Sequence[_Place], now: float) -> list[_Place]:
        """Let `others` join the step of `first` where that pays.

        A picture that joins makes the step longer for those in it, and saves the device what its rows would
        take in a later step of this size: all of them below the floor, above it a part of the fixed cost.
        Where its source is still to be encoded, those in the step wait for that too.
        """
        costs, fixed_s = self.costs, self.costs.table.step_fixed_s
        chosen, sizes = [first], {first.entry.size}
        rows, rows_s = first.bill.shape.rows, first.bill.rows_s
        step_s = costs.formula_s(rows_s, sizes=1)
        for place in others:
            bill, joint_sizes = place.bill, sizes | {place.entry.size}
            joint_rows_s = rows_s + bill.rows_s
            joint_s = costs.formula_s(joint_rows_s, sizes=len(joint_sizes))
            lost_s = joint_s - step_s
            saved_s = bill.rows_s + fixed_s * _part(bill.rows_s, joint_rows_s) - lost_s
            wait_s = bill.source_s if place.entry.phase is Phase.TEXT else 0.0
            if (
                self._pays(saved_s, lost_s + wait_s, kept=len(chosen))
                and costs.fits(rows + bill.shape.rows)
                and self._bearable([*chosen, place], now)
            ):
                chosen.append(place)
                rows += bill.shape.rows
                sizes, rows_s, step_s = joint_sizes, joint_rows_s, joint_s
        return chosen

    def _speed(self, places: Sequence[_Place]) -> float:
        """Device-seconds of work that a step of `places` gets done in a second."""
        return self.costs.efficiency([place.bill.shape for place in places])

    def _bearable(self, places: Sequence[_Place], now: float) -> bool:
        """Whether all deadlines in a step still hold if the steps to come take as long as this one."""
        if all(place.entry.deadline_s is None for place in places[:-1]):
            return True
        step_s = self.costs.step_s([place.bill.shape for place in places])
        return all(
            place.entry.deadline_s is None
            or now + place.entry.steps_left * step_s + place.bill.decode_s <= place.entry.deadline_s
            for place in places[:-1]
        )


def _part(own_s: float, all_s: float) -> float:
    return own_s / all_s if all_s else 1.0


def _rank(place: _Place) -> float:
    return place.rank


def _deadline(place: _Place) -> float:
    assert place.entry.deadline_s is not None, "only deadlines are missed"
    return place.entry.deadline_s


def _advance(entry: Entry, kind: StepKind) -> None:
    match kind:
        case StepKind.ENCODE:
            entry.phase = Phase.DENOISE
        case StepKind.DENOISE:
            entry.steps_done += 1
            if entry.steps_done == entry.steps:
                entry.phase = Phase.DECODE
        case StepKind.DECODE:
            entry.phase = Phase.DONE
        case StepKind.DROP:
            pass
