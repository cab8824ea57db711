"""What Prometheus is told, under the prefix `flux_`. Labels come from closed sets only.

Requests are recorded once, from their finished timings; steps once, from what the worker reported.
"""

from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from server.generation import GenerationResult, ModelInfo, Timings
from server.protocol import CacheReport, Stepped

STAGES: Final = ("queue", "text", "denoise", "decode", "encode", "total")
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2.5, 5, 10, 20, 40, 80)
IMAGES: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
TOKENS: Final = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Metrics:
    """One registry, so that several servers can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._stages = {
            stage: Histogram(
                f"flux_request_{stage}_seconds",
                f"Seconds of a request: {stage}",
                buckets=SECONDS,
                registry=self.registry,
            )
            for stage in STAGES
        }
        self._requests = Counter(
            "flux_requests", "Requests by route and outcome", ["route", "outcome"], registry=self.registry
        )
        self._images = Counter("flux_images", "Pictures made", registry=self.registry)
        self._step_seconds = Histogram(
            "flux_step_seconds", "Seconds of a device step", ["kind"], buckets=SECONDS, registry=self.registry
        )
        self._step_images = Histogram(
            "flux_step_images", "Pictures that share a step", ["kind"], buckets=IMAGES, registry=self.registry
        )
        self._step_tokens = Histogram(
            "flux_step_tokens", "Image tokens of a step", ["kind"], buckets=TOKENS, registry=self.registry
        )
        self._backlog = Gauge(
            "flux_backlog_device_seconds", "Admitted and unfinished work", registry=self.registry
        )
        self._ready = Gauge("flux_workers_ready", "Workers that take requests", registry=self.registry)
        self._restarts = Counter("flux_worker_restarts", "Workers replaced", registry=self.registry)
        self._cache = Counter(
            "flux_conditioning_cache", "Prompt look-ups by outcome", ["outcome"], registry=self.registry
        )
        self._cache_bytes = Gauge(
            "flux_conditioning_cache_bytes", "Bytes of cached prompts", ["worker"], registry=self.registry
        )
        self._image_cache = Counter(
            "flux_image_cache",
            "Seeded pictures: found finished (hit), being made (flight), or neither (miss)",
            ["outcome"],
            registry=self.registry,
        )
        self._image_cache_bytes = Gauge(
            "flux_image_cache_bytes", "Bytes of finished pictures", registry=self.registry
        )
        self._replays = Counter(
            "flux_idempotent_replays", "Answers given again to an Idempotency-Key", registry=self.registry
        )
        self._model = Gauge(
            "flux_model_info",
            "What is served; always 1",
            ["model", "digest", "dtype", "numerics", "quantize", "device"],
            registry=self.registry,
        )
        self._jobs = Counter(
            "flux_jobs", "Asynchronous jobs by how they ended", ["dialect", "state"], registry=self.registry
        )
        self._jobs_unfinished = Gauge(
            "flux_jobs_unfinished", "Asynchronous jobs that are to be done", registry=self.registry
        )
        self._webhooks = Counter(
            "flux_webhook_attempts", "Webhook calls by outcome", ["outcome"], registry=self.registry
        )
        self._cache_seen: dict[int, CacheReport] = {}

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def request(self, route: str, outcome: str, result: GenerationResult | None = None) -> None:
        """Count one answered request; `outcome` is `ok` or the code of its error.

        A request whose pictures were all there, or made for another one, has no stages of its own.
        """
        self._requests.labels(route, outcome).inc()
        if result is not None:
            made = result.cached + result.joined < len(result.images)
            for stage, seconds in stage_seconds(result.timings).items():
                if made or stage in ("queue", "total"):
                    self._stages[stage].observe(seconds)

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

    def cache(self, worker: int, report: CacheReport) -> None:
        """Add what a worker's cache counted since its last report; a new worker counts from zero."""
        seen = self._cache_seen.get(worker)
        if seen is None or report.hits < seen.hits or report.misses < seen.misses:
            seen = CacheReport(hits=0, misses=0, size_bytes=0)
        self._cache.labels("hit").inc(report.hits - seen.hits)
        self._cache.labels("miss").inc(report.misses - seen.misses)
        self._cache_bytes.labels(str(worker)).set(report.size_bytes)
        self._cache_seen[worker] = report

    def backlog(self, device_s: float) -> None:
        self._backlog.set(device_s)

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


def stage_seconds(timings: Timings) -> dict[str, float]:
    """Return the seconds of every stage by its name: the one source of metrics, headers and answers."""
    return {stage: getattr(timings, f"{stage}_s") for stage in STAGES}
