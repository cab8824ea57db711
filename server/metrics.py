"""What Prometheus is told, under the prefix `flux_`. Labels come from closed sets only.

Requests are recorded once, from their finished timings; steps once, from what the worker reported.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.errors import DeadlineExceeded, Overloaded
from server.generation import GenerationResult, ModelInfo, Priority, Timings
from server.protocol import CacheReport, Stepped
from server.recent import Recent

STAGES: Final = ("queue", "text", "denoise", "decode", "encode", "total")
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 40, 80)
IMAGES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
TOKENS: Final = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
PARTS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
RATIOS: Final = (0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """Look-ups since the start by outcome, and what is kept now."""

    lookups: dict[str, int]
    size_bytes: int


class Metrics:
    """One registry, so that several servers can live in one process; `recent` is its short memory."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.recent = Recent()
        self._stages = {
            stage: self._histogram(f"flux_request_{stage}_seconds", f"Seconds of a request: {stage}", SECONDS)
            for stage in STAGES
        }
        self._requests = self._counter("flux_requests", "Requests by route and outcome", "route", "outcome")
        self._finish = self._histogram(
            "flux_finish_ratio", "Seconds of a request over those predicted when it came in", RATIOS
        )
        self._deadlines = self._counter(
            "flux_deadlines",
            "Requests with a deadline: finished (met), given up (missed), refused at the door (refused)",
            "outcome",
        )
        self._auto_steps = self._counter(
            "flux_auto_steps", 'Steps that were chosen for num_inference_steps "auto"', "steps"
        )
        self._images = self._counter("flux_images", "Pictures made")
        self._step_seconds = self._histogram("flux_step_seconds", "Seconds of a device step", SECONDS, "kind")
        self._step_images = self._histogram("flux_step_images", "Pictures that share a step", IMAGES, "kind")
        self._step_tokens = self._histogram("flux_step_tokens", "Image tokens of a step", TOKENS, "kind")
        self._efficiency = self._histogram(
            "flux_step_pack_efficiency",
            "Part of a denoising step's predicted time that its rows take: 1 is a full step of one size",
            PARTS,
        )
        self._backlog = self._gauge("flux_backlog_device_seconds", "Admitted and unfinished work")
        self._waiting = self._gauge(
            "flux_waiting_images", "Admitted pictures of which no step has begun", "priority"
        )
        self._ready = self._gauge("flux_workers_ready", "Workers that take requests")
        self._restarts = self._counter("flux_worker_restarts", "Workers replaced")
        self._cache = self._counter("flux_conditioning_cache", "Prompt look-ups by outcome", "outcome")
        self._cache_bytes = self._gauge("flux_conditioning_cache_bytes", "Bytes of cached prompts", "worker")
        self._image_cache = self._counter(
            "flux_image_cache",
            "Seeded pictures: found finished (hit), being made (flight), or neither (miss)",
            "outcome",
        )
        self._image_cache_bytes = self._gauge("flux_image_cache_bytes", "Bytes of finished pictures")
        self._replays = self._counter("flux_idempotent_replays", "Answers given again to an Idempotency-Key")
        self._model = self._gauge(
            "flux_model_info",
            "What is served; always 1",
            *("model", "digest", "dtype", "numerics", "quantize", "device"),
        )
        self._jobs = self._counter("flux_jobs", "Jobs by how they ended", "dialect", "state")
        self._jobs_unfinished = self._gauge("flux_jobs_unfinished", "Jobs that are to be done")
        self._webhooks = self._counter("flux_webhook_attempts", "Webhook calls by outcome", "outcome")
        self._cache_seen: dict[int, CacheReport] = {}

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def request(self, route: str, outcome: str, result: GenerationResult | None = None) -> None:
        """Count one answered request; `outcome` is `ok` or the code of its error."""
        self._requests.labels(route, outcome).inc()
        if result is not None:
            self.result(result)

    def result(self, result: GenerationResult) -> None:
        """Count where the time of a request or a job went.

        One whose pictures were all there, or made for another one, has no stages of its own.
        """
        stages_s = stage_seconds(result.timings)
        if not result.made:
            stages_s = {stage: stages_s[stage] for stage in ("queue", "total")}
        elif result.forecast is not None and result.forecast.finish_s > 0:
            self._finish.observe(result.timings.total_s / result.forecast.finish_s)
        for stage, seconds in stages_s.items():
            self._stages[stage].observe(seconds)
        self.recent.request(stages_s)

    def image_made(self) -> None:
        self._images.inc()

    def image_cache(self, outcome: Literal["hit", "flight", "miss"]) -> None:
        self._image_cache.labels(outcome).inc()

    def image_cache_bytes(self, size_bytes: int) -> None:
        self._image_cache_bytes.set(size_bytes)

    def replayed(self) -> None:
        self._replays.inc()

    def step(self, stepped: Stepped) -> None:
        self._step_seconds.labels(stepped.kind).observe(stepped.seconds)
        self._step_images.labels(stepped.kind).observe(stepped.images)
        self._step_tokens.labels(stepped.kind).observe(stepped.tokens)
        if stepped.efficiency is not None:
            self._efficiency.observe(stepped.efficiency)
        self.recent.step(stepped)

    def cache(self, worker: int, report: CacheReport) -> None:
        """Add what a worker's cache counted since its last report; a new worker counts from zero."""
        seen = self._cache_seen.get(worker)
        if seen is None or report.hits < seen.hits or report.misses < seen.misses:
            seen = CacheReport(hits=0, misses=0, size_bytes=0)
        self._cache.labels("hit").inc(report.hits - seen.hits)
        self._cache.labels("miss").inc(report.misses - seen.misses)
        self._cache_bytes.labels(str(worker)).set(report.size_bytes)
        self._cache_seen[worker] = report

    def image_lookups(self) -> CacheCounts:
        return CacheCounts(_by_label(self._image_cache), int(_total(self._image_cache_bytes)))

    def prompt_lookups(self) -> CacheCounts:
        return CacheCounts(_by_label(self._cache), int(_total(self._cache_bytes)))

    def replays(self) -> int:
        return int(_total(self._replays))

    def watch(self, *, backlog_s: Callable[[], float], waiting: Callable[[Priority], int]) -> None:
        """Ask these two whenever somebody reads the metrics: they change with every step."""
        self._backlog.set_function(backlog_s)
        for priority in Priority:
            self._waiting.labels(priority).set_function(partial(waiting, priority))

    @contextmanager
    def deadline(self, deadline_s: float | None) -> Iterator[None]:
        """Count how a request ends that has a deadline."""
        try:
            yield
        except (Overloaded, DeadlineExceeded) as error:
            if deadline_s is not None:
                self._deadlines.labels("refused" if isinstance(error, Overloaded) else "missed").inc()
            raise
        if deadline_s is not None:
            self._deadlines.labels("met").inc()

    def auto_steps(self, steps: int) -> None:
        self._auto_steps.labels(str(steps)).inc()

    def job_ended(self, dialect: str, state: str) -> None:
        self._jobs.labels(dialect, state).inc()

    def jobs_unfinished(self, count: int) -> None:
        self._jobs_unfinished.set(count)

    def webhook(self, outcome: Literal["delivered", "refused", "gone", "failed", "given_up"]) -> None:
        """Count one attempt: `refused` by us for its address, `gone` a receiver that wants no more."""
        self._webhooks.labels(outcome).inc()

    def workers(self, ready: int) -> None:
        self._ready.set(ready)

    def restarted(self) -> None:
        self._restarts.inc()

    def model(self, info: ModelInfo) -> None:
        self._model.labels(
            info.name, info.digest[:16], info.dtype, info.numerics, info.quantize, info.device
        ).set(1)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, buckets=buckets, registry=self.registry)


def stage_seconds(timings: Timings) -> dict[str, float]:
    """Return the seconds of every stage by its name: the one source of metrics, headers and answers."""
    return {stage: getattr(timings, f"{stage}_s") for stage in STAGES}


def _by_label(metric: Counter) -> dict[str, int]:
    """Return the counts of a metric with one label by its values."""
    (family,) = metric.collect()
    counts = [sample for sample in family.samples if sample.name.endswith("_total")]
    return {next(iter(sample.labels.values())): int(sample.value) for sample in counts}


def _total(metric: Counter | Gauge) -> float:
    (family,) = metric.collect()
    return sum(sample.value for sample in family.samples if not sample.name.endswith("_created"))
