"""What Prometheus reads: every request once, every step once, labels from closed sets."""

from contextlib import suppress

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.costs import StepKind
from server.errors import DeadlineExceeded, GenerationFailed, Overloaded, ServerError
from server.generation import Forecast, GenerationResult, Image, Priority, Timings
from server.metrics import STAGES, CacheCounts, Metrics, stage_seconds
from server.protocol import CacheReport, Stepped
from tests.server.models import MODEL

TIMINGS = Timings(
    queue_s=0.1, text_s=0.2, denoise_s=0.3, decode_s=0.4, encode_s=0.5, total_s=1.5, device_s=0.9
)
IMAGE = Image(data=b"", content_type="image/png", width=1, height=1, seed=1, timings=TIMINGS)
RESULT = GenerationResult(
    id="r", model="m", steps=4, run_steps=4, images=[IMAGE, IMAGE], timings=TIMINGS, created=1
)


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return every sample under its name and sorted label values."""
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_result_is_recorded_once_in_every_stage() -> None:
    metrics = Metrics()
    metrics.request("/v1/generate", "ok", RESULT)
    found = samples(metrics)
    assert found["flux_requests_total", "/v1/generate", "ok"] == 1
    for stage in STAGES:
        assert found[f"flux_request_{stage}_seconds_count",] == 1
        assert found[f"flux_request_{stage}_seconds_sum",] == stage_seconds(TIMINGS)[stage]


def test_a_request_that_nothing_was_made_for_has_only_waited() -> None:
    metrics = Metrics()
    metrics.request("/v1/generate", "ok", msgspec.structs.replace(RESULT, cached=1, joined=1))
    found = samples(metrics)
    assert found["flux_request_queue_seconds_count",] == found["flux_request_total_seconds_count",] == 1
    for stage in ("text", "denoise", "decode", "encode"):
        assert found[f"flux_request_{stage}_seconds_count",] == 0
    metrics.request("/v1/generate", "ok", msgspec.structs.replace(RESULT, cached=1))
    assert samples(metrics)["flux_request_denoise_seconds_count",] == 1


def test_what_was_reused_is_counted() -> None:
    metrics = Metrics()
    metrics.image_made()
    metrics.image_cache("hit")
    metrics.image_cache("flight")
    metrics.image_cache("miss")
    metrics.image_cache_bytes(9)
    metrics.replayed()
    found = samples(metrics)
    assert [found["flux_image_cache_total", outcome] for outcome in ("hit", "flight", "miss")] == [1, 1, 1]
    assert found["flux_images_total",] == found["flux_idempotent_replays_total",] == 1
    assert found["flux_image_cache_bytes",] == 9


def test_an_error_counts_under_its_code_and_has_no_timings() -> None:
    metrics = Metrics()
    metrics.request("/v1/generate", "overloaded")
    found = samples(metrics)
    assert found["flux_requests_total", "/v1/generate", "overloaded"] == 1
    assert found["flux_request_total_seconds_count",] == 0


def test_a_step_tells_its_seconds_pictures_and_tokens() -> None:
    metrics = Metrics()
    denoise = Stepped(kind=StepKind.DENOISE, lane=0, images=3, tokens=768, seconds=0.2, efficiency=0.75)
    metrics.step(denoise)
    metrics.step(Stepped(kind=StepKind.DECODE, lane=1, images=1, tokens=256, seconds=0.1))
    found = samples(metrics)
    assert found["flux_step_pack_efficiency_sum",] == 0.75
    assert found["flux_step_pack_efficiency_count",] == 1
    assert found["flux_step_images_sum", "decode"] == 1
    assert found["flux_step_images_sum", "denoise"] == 3
    assert found["flux_step_tokens_sum", "denoise"] == 768
    assert found["flux_step_seconds_sum", "denoise"] == 0.2


def test_a_request_tells_how_its_prediction_came_true() -> None:
    metrics = Metrics()
    predicted = msgspec.structs.replace(RESULT, forecast=Forecast(position=3, finish_s=1.0))
    metrics.request("/v1/generate", "ok", predicted)
    metrics.request("/v1/generate", "ok", msgspec.structs.replace(predicted, joined=2))
    metrics.request("/v1/generate", "ok", RESULT)
    found = samples(metrics)
    assert found["flux_finish_ratio_count",] == 1, "only what was made for it was predicted for it"
    assert found["flux_finish_ratio_sum",] == 1.5


@pytest.mark.parametrize(
    ("deadline_s", "error", "outcome"),
    [
        (1.0, None, "met"),
        (1.0, DeadlineExceeded("late"), "missed"),
        (1.0, Overloaded("full"), "refused"),
        (1.0, GenerationFailed("NaN"), None),
        (None, None, None),
        (None, Overloaded("full"), None),
    ],
)
def test_requests_with_a_deadline_are_counted_by_how_they_end(
    deadline_s: float | None, error: ServerError | None, outcome: str | None
) -> None:
    metrics = Metrics()
    with suppress(ServerError), metrics.deadline(deadline_s):
        if error is not None:
            raise error
    counted = {key[1]: value for key, value in samples(metrics).items() if key[0] == "flux_deadlines_total"}
    assert counted == ({outcome: 1} if outcome else {})


def test_chosen_steps_are_counted() -> None:
    metrics = Metrics()
    for steps in (4, 4, 1):
        metrics.auto_steps(steps)
    found = samples(metrics)
    assert (found["flux_auto_steps_total", "4"], found["flux_auto_steps_total", "1"]) == (2, 1)


def test_look_ups_can_be_read_back() -> None:
    metrics = Metrics()
    assert metrics.image_lookups() == CacheCounts({}, 0)
    metrics.image_cache("hit")
    metrics.image_cache("hit")
    metrics.image_cache("miss")
    metrics.image_cache_bytes(9)
    metrics.cache(0, CacheReport(hits=3, misses=1, size_bytes=10))
    metrics.cache(1, CacheReport(hits=0, misses=1, size_bytes=20))
    metrics.replayed()
    assert metrics.image_lookups() == CacheCounts({"hit": 2, "miss": 1}, 9)
    assert metrics.prompt_lookups() == CacheCounts({"hit": 3, "miss": 2}, 30)
    assert metrics.replays() == 1


def test_cache_counters_go_on_when_a_worker_starts_again_from_zero() -> None:
    metrics = Metrics()
    for hits, misses in ((1, 2), (5, 3), (0, 1)):
        metrics.cache(0, CacheReport(hits=hits, misses=misses, size_bytes=10))
    metrics.cache(1, CacheReport(hits=10, misses=0, size_bytes=20))
    found = samples(metrics)
    assert found["flux_conditioning_cache_total", "hit"] == 15
    assert found["flux_conditioning_cache_total", "miss"] == 4
    assert found["flux_conditioning_cache_bytes", "0"] == 10
    assert found["flux_conditioning_cache_bytes", "1"] == 20


def test_gauges_and_the_model() -> None:
    metrics = Metrics()
    waiting = {Priority.HIGH: 1, Priority.NORMAL: 5, Priority.LOW: 0}
    metrics.watch(backlog_s=lambda: 2.5, waiting=waiting.__getitem__)
    metrics.workers(2)
    metrics.restarted()
    metrics.model(MODEL)
    metrics.model(MODEL)
    found = samples(metrics)
    assert found["flux_backlog_device_seconds",] == 2.5
    assert [found["flux_waiting_images", priority] for priority in waiting] == [1, 5, 0]
    assert found["flux_workers_ready",] == 2
    assert found["flux_worker_restarts_total",] == 1
    assert found["flux_model_info", "cpu", "d1" * 8, "exact", "fake", "float32", "none"] == 1


def test_two_servers_in_one_process_do_not_meet() -> None:
    first, second = Metrics(), Metrics()
    first.request("/v1/generate", "ok")
    assert ("flux_requests_total", "/v1/generate", "ok") not in samples(second)
