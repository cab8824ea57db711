"""`GET /v1/status`: what an operator or a balancer wants to know of a server, in one small JSON object.

Its cost grows with the pictures in hand and with a window of the latest requests, never with history.
"""

from dataclasses import dataclass

from server import __version__
from server.engine import Engine
from server.errors import NotReady
from server.generation import ModelInfo
from server.metrics import CacheCounts, Metrics
from server.recent import Latency, Steps
from server.stats import QueueStats, ServerState, WorkerStats


@dataclass(frozen=True, slots=True)
class Model:
    """What is served."""

    name: str
    digest: str
    dtype: str
    numerics: str
    quantize: str
    default_width: int
    default_height: int
    default_steps: int
    max_steps: int


@dataclass(frozen=True, slots=True)
class Caches:
    """Finished pictures and encoded prompts that were found (`hit`), being made (`flight`) or neither, and
    answers that were given again to an Idempotency-Key."""

    images: CacheCounts
    prompts: CacheCounts
    idempotent_replays: int


@dataclass(frozen=True, slots=True)
class Recent:
    """The latest `requests` finished requests, by stage, and the latest denoising steps."""

    requests: int
    latencies: dict[str, Latency]
    steps: Steps | None


@dataclass(frozen=True, slots=True)
class Status:
    """A server at this moment. `model` is null until a worker has loaded it."""

    state: ServerState
    version: str
    uptime_s: float
    model: Model | None
    queue: QueueStats
    workers: list[WorkerStats]
    caches: Caches
    recent: Recent


def status_of(engine: Engine, metrics: Metrics, *, uptime_s: float) -> Status:
    """Put together what the engine and the metrics know."""
    stats, recent = engine.stats(), metrics.recent
    return Status(
        state=stats.state,
        version=__version__,
        uptime_s=round(uptime_s, 3),
        model=_model(engine),
        queue=stats.queue,
        workers=stats.workers,
        caches=Caches(
            images=metrics.image_lookups(),
            prompts=metrics.prompt_lookups(),
            idempotent_replays=metrics.replays(),
        ),
        recent=Recent(recent.requests(), recent.latencies(), recent.steps()),
    )


def _model(engine: Engine) -> Model | None:
    try:
        info: ModelInfo = engine.model
    except NotReady:
        return None
    return Model(
        name=info.name,
        digest=info.digest,
        dtype=info.dtype,
        numerics=info.numerics,
        quantize=info.quantize,
        default_width=info.default_width,
        default_height=info.default_height,
        default_steps=info.default_steps,
        max_steps=info.max_steps,
    )
