"""What the server did lately: the latest requests and denoising steps, in windows of a fixed length.

Prometheus keeps histories; this answers `GET /v1/status` without one. `server.metrics` fills it.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, quantiles
from typing import Final

from server.costs import StepKind
from server.protocol import Stepped

WINDOW: Final = 256


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of one stage, in seconds."""

    p50_s: float
    p95_s: float


@dataclass(frozen=True, slots=True)
class Steps:
    """Means of the latest denoising steps. `efficiency` is the part of their time that was work on pictures,
    by the table of costs; the rest a larger step would not take longer for."""

    steps: int
    images: float
    tokens: float
    seconds: float
    efficiency: float


@dataclass(slots=True)
class Recent:
    """The latest `WINDOW` finished requests and denoising steps."""

    _requests: deque[Mapping[str, float]] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _steps: deque[Stepped] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def request(self, stages_s: Mapping[str, float]) -> None:
        """Take in the seconds of one request by stage."""
        self._requests.append(stages_s)

    def step(self, stepped: Stepped) -> None:
        """Take in one step; other kinds than denoising do not count."""
        if stepped.kind is StepKind.DENOISE:
            self._steps.append(stepped)

    def requests(self) -> int:
        """Return how many requests the latencies are of."""
        return len(self._requests)

    def latencies(self) -> dict[str, Latency]:
        """Return the percentiles of every stage that any of the latest requests had."""
        stages = dict.fromkeys(stage for request in self._requests for stage in request)
        return {
            stage: _latency(request[stage] for request in self._requests if stage in request)
            for stage in stages
        }

    def steps(self) -> Steps | None:
        """Return the means of the latest denoising steps, None before the first."""
        if not self._steps:
            return None
        return Steps(
            steps=len(self._steps),
            images=fmean(step.images for step in self._steps),
            tokens=fmean(step.tokens for step in self._steps),
            seconds=fmean(step.seconds for step in self._steps),
            efficiency=fmean(step.efficiency or 0.0 for step in self._steps),
        )


def _latency(seconds: Iterable[float]) -> Latency:
    values = list(seconds)
    if len(values) == 1:
        return Latency(values[0], values[0])
    cuts = quantiles(values, n=20, method="inclusive")
    return Latency(p50_s=cuts[9], p95_s=cuts[18])
