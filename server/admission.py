"""Who may come in: a bound on the backlog in device-seconds, and a forecast for deadlines, at the door.

Pure: the engine tells what was admitted, what left and what it really cost. Costs come from the table that a
worker has measured, and follow the pictures that are made.
"""

import bisect
import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from server.costs import Bill, Costs, CostTable, Shape, StepKind
from server.errors import Overloaded
from server.fairness import FairClock, Share, weigh
from server.generation import ImageRequest, ModelInfo

FOLLOW = 0.1  # weight of the newest picture in the pace
MOST_SURPRISE = 4.0  # a picture counts as at most this much dearer or cheaper: one hiccup is no new rate
HALF_FULL = 8  # pictures in hand per worker at which a forecast is half-way between its two bounds
MAX_RETRY_AFTER_S = 120  # clients give up on longer waits
MOST_AUTO_STEPS = 4
NOTHING_S = 1e-9  # sums of floats do not meet


@dataclass(eq=False, slots=True)
class Admitted:
    """A picture that was let in as the `number`-th one.

    `left_s` device-seconds of its bill are still to do; `forecast_s` after it came in it will be done.
    """

    number: int
    bill: Bill
    share: Share
    left_s: float
    forecast_s: float

    @property
    def turn(self) -> tuple[float, int]:
        """Lower goes first, as in the batcher: when it is due, less what is done of it; then the older."""
        return self.share.due - (self.bill.total_s - self.left_s) / self.share.weight, self.number


@dataclass(slots=True)
class Admission:
    """Estimates costs and keeps the backlog. Seconds are device-seconds; `workers` share the backlog.

    `pace` is what pictures really take, compared with the table. From each of the backlogs per worker in
    `step_down_s` on, requests that leave their steps to the server get one step less.
    """

    max_backlog_s: float
    step_down_s: Sequence[float] = ()
    pace: float = 1.0
    _costs: Costs = field(default_factory=lambda: Costs.of(CostTable()))
    _clock: FairClock = field(default_factory=FairClock)
    _in_hand: set[Admitted] = field(default_factory=set)
    _left_s: float = 0.0  # by the table
    _joined: int = 0

    @property
    def backlog_s(self) -> float:
        """Device-seconds until all that was admitted is done."""
        return self.pace * self._left_s

    def start_from(self, table: CostTable) -> None:
        """Take the costs that a worker has measured."""
        self._costs = Costs.of(table)

    def admit(
        self, images: Sequence[ImageRequest], model: ModelInfo, *, workers: int, deadline_s: float | None
    ) -> list[Admitted]:
        """Add the pictures of a request to the backlog, or raise `Overloaded`.

        An idle server admits anything, however large. A request that would finish after its deadline is
        refused at once: the work would be for nobody. The error says after how many seconds both would be
        different if nothing else came in meanwhile.
        """
        bills = [self._costs.bill(_shape(image, model), steps=image.run_steps) for image in images]
        idle = not self._in_hand
        admitted = [self._join(image, bill, workers) for image, bill in zip(images, bills, strict=True)]
        after_s, finish_s = self.backlog_s / workers, max(each.forecast_s for each in admitted)
        full = after_s > self.max_backlog_s
        late = deadline_s is not None and finish_s > deadline_s + NOTHING_S
        if idle or not (full or late):
            return admitted
        for each in admitted:
            self.release(each, finished=False)
        before_s = self.backlog_s / workers
        wait_s = min(before_s, after_s - self.max_backlog_s)
        reason = f"the backlog is {before_s:.1f} s of work per device, the limit is {self.max_backlog_s:g} s"
        if deadline_s is not None and late:
            siblings_s = self.pace * sum(bill.total_s for bill in bills[1:]) / workers
            wait_s = max(wait_s, self._until_in_time_s(admitted[-1], deadline_s - siblings_s, workers))
        if not full:
            reason = (
                f"the request would finish in about {finish_s:.1f} s, after its deadline of {deadline_s:g} s"
            )
        raise Overloaded(reason, retry_after_s=_retry_after_s(wait_s))

    def forecast_s(self, image: ImageRequest, model: ModelInfo, *, workers: int) -> float:
        """Return the seconds after which a picture would be done if it came now."""
        bill = self._costs.bill(_shape(image, model), steps=image.run_steps)
        asked = self._join(image, bill, workers)
        self.release(asked, finished=False)
        return asked.forecast_s

    def auto_steps(self, model: ModelInfo, *, workers: int) -> int:
        """Return the steps that `num_inference_steps: "auto"` gets now: 4, less where the backlog is long."""
        wait_s = self.backlog_s / max(1, workers)
        chosen = MOST_AUTO_STEPS - sum(wait_s >= limit_s for limit_s in self.step_down_s)
        return min(chosen, model.max_steps)

    def position(self, admitted: Admitted) -> int:
        """Return how many pictures in hand are due before this one."""
        return sum(each.turn < admitted.turn for each in self._in_hand)

    def progress(self, admitted: Admitted, kind: StepKind) -> None:
        """Take a step that a picture took part in out of the backlog."""
        match kind:
            case StepKind.ENCODE:
                done_s = admitted.bill.text_s
            case StepKind.DENOISE:
                done_s = admitted.bill.step_s
            case StepKind.DECODE:
                done_s = admitted.bill.decode_s
            case StepKind.DROP:
                done_s = 0.0
        self._clock.advance(self._shrink(admitted, done_s))

    def restart(self, admitted: Admitted) -> None:
        """Put what was done of a picture back into the backlog: its worker died."""
        self._shrink(admitted, admitted.left_s - admitted.bill.total_s)

    def release(self, admitted: Admitted, *, finished: bool) -> None:
        """Take a picture that is finished, failed or cancelled out of the backlog."""
        self._in_hand.discard(admitted)
        left_s = self._shrink(admitted, admitted.left_s)
        if finished:
            self._clock.advance(left_s)
        else:
            self._clock.leave(admitted.share, left_s=left_s)

    def observe(self, admitted: Admitted, device_s: float) -> None:
        """Follow what a picture really cost."""
        estimated_s = self.pace * admitted.bill.total_s
        if estimated_s > 0 and device_s > 0:
            surprise = min(MOST_SURPRISE, max(1 / MOST_SURPRISE, device_s / estimated_s))
            self.pace *= 1 - FOLLOW + FOLLOW * surprise

    def _join(self, image: ImageRequest, bill: Bill, workers: int) -> Admitted:
        asked = weigh(image.priority, bill.total_s)
        share = self._clock.join(key=image.key, cost_s=bill.total_s, weight=asked)
        self._joined += 1
        admitted = Admitted(
            self._joined, bill, share, bill.total_s, forecast_s=self._forecast_s(bill, share, workers)
        )
        self._in_hand.add(admitted)
        self._left_s += bill.total_s
        return admitted

    def _shrink(self, admitted: Admitted, done_s: float) -> float:
        """Take up to `done_s` off what is left of a picture; return what was taken."""
        done_s = min(done_s, admitted.left_s)
        admitted.left_s -= done_s
        self._left_s = max(0.0, self._left_s - done_s) if self._in_hand else 0.0  # floats do not sum to zero
        return done_s

    def _forecast_s(self, bill: Bill, share: Share, workers: int) -> float:
        """Return the seconds after which a picture will be done.

        If nothing came after it: after what is in hand and due earlier. If as much work kept coming as is
        done: when it is due, since small work that is still to come will go before it. The fuller the server,
        the nearer to the second.
        """
        return self._predict_s(bill, self._clock.now, self._clock.weight, share, self._in_hand, workers)

    def _predict_s(
        self, bill: Bill, now: float, weight: float, share: Share, in_hand: Collection[Admitted], workers: int
    ) -> float:
        due = now + bill.total_s / share.weight
        before_s = sum(each.left_s for each in in_hand if each.turn[0] <= due)
        soon_s = before_s / workers if len(in_hand) >= workers else 0.0
        due_s = max(bill.total_s, (due - now) * weight / workers) - bill.total_s
        fullness = len(in_hand) / (len(in_hand) + HALF_FULL * workers)
        return self.pace * (soon_s + fullness * max(0.0, due_s - soon_s) + bill.alone_s)

    def _until_in_time_s(self, asked: Admitted, deadline_s: float, workers: int) -> float:
        """Return the seconds until a picture that came then would be done within its deadline.

        What is in hand is done in turn meanwhile, and nothing else comes in.
        """
        order = sorted(self._in_hand, key=_turn)
        done_s = [0.0, *itertools.accumulate(each.left_s for each in order)]

        def in_time(count: int) -> bool:
            now, weight = self._clock.after(done_s[count])
            weight += asked.share.weight
            left = order[count:]
            finish_s = self._predict_s(asked.bill, now, weight, asked.share, left, workers)
            return not left or finish_s <= deadline_s + NOTHING_S

        count = bisect.bisect_left(range(len(order)), True, key=in_time)
        return self.pace * done_s[count] / workers


def _turn(admitted: Admitted) -> tuple[float, int]:
    return admitted.turn


def _retry_after_s(excess_s: float) -> float:
    return float(min(MAX_RETRY_AFTER_S, max(1, math.ceil(excess_s - NOTHING_S))))


def _shape(image: ImageRequest, model: ModelInfo) -> Shape:
    guided = image.guidance_scale > 1 and not model.guidance_embed
    return Shape(
        image.width,
        image.height,
        image.max_sequence_length,
        passes=2 if guided else 1,
        has_source=image.encodes_source,
    )
