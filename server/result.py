"""One request's answer, put together from the pictures that it waited for."""

import math
import time
from collections.abc import Sequence
from functools import partial

import msgspec

from server.admission import Admission
from server.generation import Forecast, GenerationRequest, GenerationResult, Image, Timings
from server.roster import Waiter


def announce(waiters: Sequence[Waiter], admission: Admission, *, now: float) -> Forecast | None:
    """Let whoever watches hear of each picture from now on, and return how the request stands altogether.

    That is known from the runs that it waits for, its own or those of others. Its position is that of the
    first of them; `now` is on the loop's clock.
    """
    forecasts: list[Forecast] = []
    for number, waiter in enumerate(waiters):
        waiter.hear = partial(waiter.watch.listen, number)
        if waiter.pending is None:
            waiter.hear(waiter.answer.result())
        else:
            forecasts.append(waiter.pending.forecast(admission, now=now))
            waiter.hear(forecasts[-1])
    if not forecasts:
        return None
    return Forecast(
        position=min(each.position for each in forecasts), finish_s=max(each.finish_s for each in forecasts)
    )


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
        run_steps=request.run_steps,
        images=images,
        timings=_timings(made, total_s=total_s),
        created=int(time.time()),
        cached=cached,
        joined=joined,
        forecast=forecast,
    )


def _timings(made: Sequence[Timings], *, total_s: float) -> Timings:
    """Those of the picture that took longest; what is not spent in its stages is waiting.

    The stages of a picture that another request had made are not this one's: of those it only waited.
    """
    slowest = max(made, key=lambda timings: timings.total_s, default=Timings())
    stages_s = math.fsum((slowest.text_s, slowest.denoise_s, slowest.decode_s, slowest.encode_s))
    return msgspec.structs.replace(slowest, queue_s=max(0.0, total_s - stages_s), total_s=total_s)
