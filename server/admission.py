"""Who may come in: a bound on the backlog in device-seconds, and a forecast for deadlines, at the door.

Pure: the engine tells what was admitted, what left and what it really cost. Costs come from the table that a
worker has measured, and follow the pictures that are made.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.costs import Bill, Costs, CostTable, Shape
from server.errors import Overloaded
from server.fairness import FairClock, Share, weigh
from server.generation import ImageRequest, ModelInfo

FOLLOW = 0.1  # weight of the newest picture in the pace
MOST_SURPRISE = 4.0  # a picture counts as at most this much dearer or cheaper: one hiccup is no new rate
HALF_FULL = 8  # pictures in hand per worker at which a forecast is half-way between its two bounds
MAX_RETRY_AFTER_S = 120  # clients give up on longer waits
MOST_AUTO_STEPS = 4


@dataclass(eq=False, slots=True)
class Admitted:
    """A picture that was let in.

    `cost_s` is its part of the backlog in device-seconds, `forecast_s` when it will be done, from then on.
    """

    bill: Bill
    share: Share
    cost_s: float
    forecast_s: float


@dataclass(slots=True)
class Admission:
    """Estimates costs and keeps the backlog. Seconds are device-seconds; `workers` share the backlog.

    `pace` is what pictures really take, compared with the table.
    """

    max_backlog_s: float
    backlog_s: float = 0.0
    pace: float = 1.0
    _costs: Costs = field(default_factory=lambda: Costs.of(CostTable()))
    _clock: FairClock = field(default_factory=FairClock)
    _in_hand: set[Admitted] = field(default_factory=set)

    def start_from(self, table: CostTable) -> None:
        """Take the costs that a worker has measured."""
        self._costs = Costs.of(table)

    def admit(
        self, images: Sequence[ImageRequest], model: ModelInfo, *, workers: int, deadline_s: float | None
    ) -> list[Admitted]:
        """Add pictures to the backlog or raise `Overloaded` with the seconds after which to come back.

        An idle server admits anything, however large. A request that would finish after its deadline is
        refused at once: the work would be for nobody.
        """
        bills = [self._costs.bill(_shape(image, model), steps=image.steps) for image in images]
        after_s = self.backlog_s + self.pace * sum(bill.total_s for bill in bills)
        if self.backlog_s > 0 and after_s > self.max_backlog_s * workers:
            raise Overloaded(
                f"the backlog is {self.backlog_s / workers:.1f} s of work per device, the limit is "
                f"{self.max_backlog_s:g} s",
                retry_after_s=_retry_after_s(after_s / workers - self.max_backlog_s),
            )
        idle = self.backlog_s == 0
        admitted = [self._join(image, bill, workers) for image, bill in zip(images, bills, strict=True)]
        finish_s = max(each.forecast_s for each in admitted)
        if deadline_s is not None and not idle and finish_s > deadline_s:
            for each in admitted:
                self.release(each, finished=False)
            raise Overloaded(
                f"the request would finish in about {finish_s:.1f} s, after its deadline of {deadline_s:g} s",
                retry_after_s=_retry_after_s(finish_s - deadline_s),
            )
        return admitted

    def release(self, admitted: Admitted, *, finished: bool) -> None:
        """Take a picture that is finished, failed or cancelled out of the backlog."""
        self._in_hand.discard(admitted)
        if finished:
            self._clock.advance(admitted.bill.total_s)
        else:
            self._clock.leave(admitted.share, left_s=admitted.bill.total_s)
        left_s = self.backlog_s - admitted.cost_s
        self.backlog_s = left_s if left_s > 1e-9 else 0.0  # sums of floats do not return to zero

    def observe(self, admitted: Admitted, device_s: float) -> None:
        """Follow what a picture really cost."""
        estimated_s = self.pace * admitted.bill.total_s
        if estimated_s > 0 and device_s > 0:
            surprise = min(MOST_SURPRISE, max(1 / MOST_SURPRISE, device_s / estimated_s))
            self.pace *= 1 - FOLLOW + FOLLOW * surprise

    def _join(self, image: ImageRequest, bill: Bill, workers: int) -> Admitted:
        asked = weigh(image.priority, bill.total_s)
        share = self._clock.join(key=image.key, cost_s=bill.total_s, weight=asked)
        admitted = Admitted(bill, share, self.pace * bill.total_s, self._forecast_s(bill, share, workers))
        self._in_hand.add(admitted)
        self.backlog_s += admitted.cost_s
        return admitted

    def _forecast_s(self, bill: Bill, share: Share, workers: int) -> float:
        """Return the seconds after which a picture will be done.

        If nothing came after it: after what is in hand and due earlier. If as much work kept coming as is
        done: when it is due, since small work that is still to come will go before it. The fuller the server,
        the nearer to the second.
        """
        in_hand = len(self._in_hand)
        before_s = sum(each.bill.total_s for each in self._in_hand if each.share.due <= share.due)
        soon_s = before_s / workers if in_hand >= workers else 0.0
        due_s = max(bill.total_s, self._clock.due_in_s(share) / workers) - bill.total_s
        fullness = in_hand / (in_hand + HALF_FULL * workers)
        return self.pace * (soon_s + fullness * max(0.0, due_s - soon_s) + bill.alone_s)


def auto_steps(backlog_s: float, *, step_down_s: float) -> int:
    """Return 4 to 1 steps for `num_inference_steps: "auto"`: one less per `step_down_s` of backlog."""
    return max(1, MOST_AUTO_STEPS - int(backlog_s / step_down_s))


def _retry_after_s(excess_s: float) -> float:
    return float(min(MAX_RETRY_AFTER_S, max(1, math.ceil(excess_s))))


def _shape(image: ImageRequest, model: ModelInfo) -> Shape:
    guided = image.guidance_scale > 1 and not model.guidance_embed
    return Shape(image.width, image.height, image.max_sequence_length, 2 if guided else 1)
