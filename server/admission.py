"""Who may come in: a bound on the backlog in device-seconds, answered at the door.

Pure: the engine tells what was admitted, what left and what it really cost. The estimate starts from the
worker's warm-up picture and follows the pictures that are made.
"""

import math
from dataclasses import dataclass

from server.errors import Overloaded
from server.generation import ImageRequest, ModelInfo, image_tokens

DECODE_STEPS = 1.0  # decoding costs about as much as one denoising step of the same size
FOLLOW = 0.1  # weight of the newest picture in the estimate
MOST_SURPRISE = 4.0  # a picture counts as at most this much dearer or cheaper: one hiccup is no new rate
MAX_RETRY_AFTER_S = 120  # clients give up on longer waits
MOST_AUTO_STEPS = 4


def work_units(*, width: int, height: int, steps: int, passes: int) -> float:
    """Token-steps of one picture: what its device time is taken to be proportional to."""
    return image_tokens(width, height) * (steps * passes + DECODE_STEPS)


@dataclass(slots=True)
class Admission:
    """Estimates costs and keeps the backlog. Seconds are device-seconds; `workers` share the backlog."""

    max_backlog_s: float
    backlog_s: float = 0.0
    unit_s: float = 0.0

    def start_from(self, model: ModelInfo) -> None:
        """Take the first estimate from a worker's warm-up picture."""
        units = work_units(
            width=model.default_width, height=model.default_height, steps=model.default_steps, passes=1
        )
        self.unit_s = self.unit_s or model.warm_up_s / units

    def cost_s(self, image: ImageRequest, model: ModelInfo) -> float:
        """Estimate the device-seconds of one picture."""
        guided = image.guidance_scale > 1 and not model.guidance_embed
        units = work_units(
            width=image.width, height=image.height, steps=image.steps, passes=2 if guided else 1
        )
        return units * self.unit_s

    def admit(self, cost_s: float, *, workers: int, deadline_s: float | None) -> None:
        """Add `cost_s` to the backlog or raise `Overloaded` with the seconds after which to come back.

        An idle server admits anything, however large. A request that would finish after its deadline is
        refused at once: the work would be for nobody.
        """
        after_s = self.backlog_s + cost_s
        if self.backlog_s > 0 and after_s > self.max_backlog_s * workers:
            raise Overloaded(
                f"the backlog is {self.backlog_s / workers:.1f} s of work per device, the limit is "
                f"{self.max_backlog_s:g} s",
                retry_after_s=_retry_after_s(after_s / workers - self.max_backlog_s),
            )
        if deadline_s is not None and self.backlog_s > 0 and after_s / workers > deadline_s:
            raise Overloaded(
                f"the request would finish in about {after_s / workers:.1f} s, after its deadline of "
                f"{deadline_s:g} s",
                retry_after_s=_retry_after_s(after_s / workers - deadline_s),
            )
        self.backlog_s = after_s

    def release(self, cost_s: float) -> None:
        """Take a picture that is finished, failed or cancelled out of the backlog."""
        left_s = self.backlog_s - cost_s
        self.backlog_s = left_s if left_s > 1e-9 else 0.0  # sums of floats do not return to zero

    def observe(self, image: ImageRequest, model: ModelInfo, device_s: float) -> None:
        """Follow what a picture really cost."""
        estimated_s = self.cost_s(image, model)
        if estimated_s > 0 and device_s > 0:
            surprise = min(MOST_SURPRISE, max(1 / MOST_SURPRISE, device_s / estimated_s))
            self.unit_s *= 1 - FOLLOW + FOLLOW * surprise


def auto_steps(backlog_s: float, *, step_down_s: float) -> int:
    """Return 4 to 1 steps for `num_inference_steps: "auto"`: one less per `step_down_s` of backlog."""
    return max(1, MOST_AUTO_STEPS - int(backlog_s / step_down_s))


def _retry_after_s(excess_s: float) -> float:
    return float(min(MAX_RETRY_AFTER_S, max(1, math.ceil(excess_s))))
