"""What the engine is doing at this moment, computed when somebody asks: for `/v1/status` and the gauges."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from server.admission import Admission
from server.generation import GenerationRequest, ModelInfo, Priority
from server.roster import Pending, Worker, workers_hoped_for
from server.supervisor import State


class ServerState(StrEnum):
    """READY is what `/readyz` calls so; LOADING is also a server whose workers are all being replaced."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker. `backlog_s` is in device-seconds; `sizes` are those of the pictures it has in hand."""

    state: State
    device: str
    backlog_s: float
    in_hand: int
    sizes: list[str]
    restarts: int


@dataclass(frozen=True, slots=True)
class QueueStats:
    """What was admitted: `backlog_s` device-seconds on all workers together, of at most `limit_s`.

    A picture is `running` once a step of it has begun, `waiting` before. `predicted_s` is when a picture of
    the model's default size and steps would be done if it came now, `auto_steps` what `"auto"` would get:
    null until a worker has loaded the model.
    """

    backlog_s: float
    limit_s: float
    waiting: dict[Priority, int]
    running: dict[Priority, int]
    predicted_s: float | None
    auto_steps: int | None


@dataclass(frozen=True, slots=True)
class EngineStats:
    state: ServerState
    queue: QueueStats
    workers: list[WorkerStats]

    @property
    def backlog_s(self) -> float:
        """Device-seconds of all that was admitted."""
        return self.queue.backlog_s

    @property
    def in_hand(self) -> int:
        """Pictures that workers have."""
        return sum(worker.in_hand for worker in self.workers)

    @property
    def workers_ready(self) -> int:
        return sum(worker.state is State.READY for worker in self.workers)


def stats_of(
    workers: Sequence[Worker],
    pictures: Iterable[Pending],
    admission: Admission,
    *,
    state: ServerState,
    model: ModelInfo | None,
) -> EngineStats:
    """Describe an engine that has these workers and owes these pictures."""
    hoped_for = workers_hoped_for(workers)
    queue = QueueStats(
        backlog_s=admission.backlog_s,
        limit_s=admission.max_backlog_s * hoped_for,
        waiting=by_priority(pictures, began=False),
        running=by_priority(pictures, began=True),
        predicted_s=_predicted_s(admission, model, hoped_for) if model and hoped_for else None,
        auto_steps=admission.auto_steps(model, workers=hoped_for) if model else None,
    )
    return EngineStats(state, queue, [_worker_stats(worker, pace=admission.pace) for worker in workers])


def by_priority(pictures: Iterable[Pending], *, began: bool) -> dict[Priority, int]:
    """Count the pictures of which a step has begun, or those of which none has, by their priority."""
    counts = Counter(pending.image.priority for pending in pictures if pending.began is began)
    return {priority: counts[priority] for priority in Priority}


def _worker_stats(worker: Worker, *, pace: float) -> WorkerStats:
    """Describe one worker; `pace` is what pictures really take, compared with the table of costs."""
    return WorkerStats(
        state=worker.supervisor.state,
        device=worker.device,
        backlog_s=pace * worker.backlog_s,
        in_hand=len(worker.in_hand),
        sizes=[f"{width}x{height}" for width, height in sorted(worker.sizes)],
        restarts=worker.supervisor.restarts,
    )


def _predicted_s(admission: Admission, model: ModelInfo, workers: int) -> float:
    plain = GenerationRequest(
        id="",
        prompt="",
        width=model.default_width,
        height=model.default_height,
        steps=model.default_steps,
        seed=0,
        max_sequence_length=model.default_sequence_length,
    )
    (image,) = plain.images()
    return admission.forecast_s(image, model, workers=workers)
