"""What became of the requests of one run, and what it says of the server."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, quantiles
from typing import Self

from loadtests.traffic import Arrival

STAGES = ("queue", "text", "denoise", "decode", "encode")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request; times in seconds since the beginning, `stages` in seconds from `Server-Timing`."""

    arrival: Arrival
    sent_s: float
    done_s: float
    status: int  # 0: the connection broke
    size_bytes: int
    retry_after_s: float | None = None
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def latency_s(self) -> float:
        """Seconds since it was due, not since it was sent."""
        return self.done_s - self.arrival.at_s

    @property
    def succeeded(self) -> bool:
        return self.status == 200


@dataclass(frozen=True, slots=True)
class Load:
    """One run. Rates are requests a second, latencies seconds of what succeeded."""

    offered: float
    answered: float
    requests: int
    statuses: dict[int, int]
    p50_s: float
    p95_s: float
    p99_s: float
    latest_start_s: float
    stages_s: dict[str, float]

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Self:
        """Sum up a run; `answered` is up to the last answer, `offered` up to the last arrival."""
        if not outcomes:
            raise ValueError("there was no request to report on")
        good = [outcome for outcome in outcomes if outcome.succeeded]
        latencies = [outcome.latency_s for outcome in good] or [float("nan")]
        last = max(outcome.arrival.at_s for outcome in outcomes)
        end = max(outcome.done_s for outcome in outcomes)
        return cls(
            offered=len(outcomes) / last if last > 0 else float("nan"),
            answered=len(good) / end,
            requests=len(outcomes),
            statuses=dict(sorted(Counter(outcome.status for outcome in outcomes).items())),
            p50_s=quantile(latencies, 50),
            p95_s=quantile(latencies, 95),
            p99_s=quantile(latencies, 99),
            latest_start_s=max(outcome.sent_s - outcome.arrival.at_s for outcome in outcomes),
            stages_s={
                stage: fmean(outcome.stages[stage] for outcome in timed)
                for stage in STAGES
                if (timed := [outcome for outcome in good if stage in outcome.stages])
            },
        )


def quantile(values: Sequence[float], percent: int) -> float:
    """Return the percentile of at least one value, interpolated between neighbours."""
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]
