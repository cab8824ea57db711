"""One request's answer, put together from the pictures that it waited for."""

import math
import time
from collections.abc import Sequence

import msgspec

from server.admission import Admission
from server.generation import Forecast, GenerationRequest, GenerationResult, Image, Timings
from server.roster import Waiter


def forecast_of(waiters: Sequence[Waiter], admission: Admission, *, now: float) -> Forecast | None:
    """Say when a request will be done, from the runs that it waits for, its own or those of others.

    Its position is that of the first of them; `now` is on the loop's clock.
    """
    runs = [waiter.pending for waiter in waiters if waiter.pending is not None]
    if not runs:
        return None
    position = min(admission.position(run.admitted) for run in runs)
    return Forecast(position=position, finish_s=max(0.0, *(run.predicted - now for run in runs)))


def result_of(
    request: GenerationRequest,
    images: list[Image],
    waiters: Sequence[Waiter],
    *,
    forecast: Forecast | None,
    model: str,
    total_s: float,
) -> GenerationResult:
    """Return the answer to `request`, which took `total_s`; `waiters` are its waits in order of `images`."""
    cached = sum(waiter.pending is None for waiter in waiters)
    joined = sum(waiter.joined for waiter in waiters)
    made = [
        image.timings
        for image, waiter in zip(images, waiters, strict=True)
        if waiter.pending is not None and not waiter.joined
    ]
    return GenerationResult(
        id=request.id,
        model=model,
        steps=request.steps,
        images=images,
        timings=_timings(made, total_s=total_s),
        created=int(time.time()),
        cached=cached,
        joined=joined,
        forecast=forecast,
        device_s=math.fsum(timings.device_s for timings in made),
    )


def _timings(made: Sequence[Timings], *, total_s: float) -> Timings:
    """Those of the picture that took longest; what is not spent in its stages is waiting.

    The stages of a picture that another request had made are not this one's: of those it only waited.
    """
    slowest = max(made, key=lambda timings: timings.total_s, default=Timings())
    stages_s = math.fsum((slowest.text_s, slowest.denoise_s, slowest.decode_s, slowest.encode_s))
    return msgspec.structs.replace(slowest, queue_s=max(0.0, total_s - stages_s), total_s=total_s)
