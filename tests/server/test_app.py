"""Where everything meets: what workers are told, and that starting the application starts them."""

import asyncio
from pathlib import Path
from typing import cast

import pytest

from server.app import assemble, open_jobs, sources_of, worker_starts
from server.engine import Engine
from server.idempotency import Answers
from server.metrics import Metrics
from server.quotas import Quotas
from server.settings import Settings
from tests.server.http.fake_engine import FakeEngine


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLUX_DEVICE", "FLUX_THREADS", "FLUX_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("device", "threads", "devices", "each"),
    [
        ("auto", 0, ["auto"], 8),
        ("cpu,cpu", 0, ["cpu", "cpu"], 4),
        ("cpu,cpu,cpu", 2, ["cpu", "cpu", "cpu"], 1),
        ("cuda:0,cuda:1", 6, ["cuda:0", "cuda:1"], 3),
    ],
)
def test_one_worker_per_device_shares_the_threads(
    device: str, threads: int, devices: list[str], each: int
) -> None:
    starts = worker_starts(Settings(device=device, threads=threads), cores=8)
    assert [start.device for start in starts] == devices
    assert {start.threads for start in starts} == {each}


def test_workers_are_told_in_their_own_units() -> None:
    settings = Settings(conditioning_cache_mb=3, allow_pickle=True, max_steps=5, memory="low")
    (start,) = worker_starts(settings, cores=1)
    assert start.conditioning_cache_bytes == 3 << 20
    assert (start.allow_pickle, start.verify_weights, start.max_steps) == (True, "auto", 5)
    assert start.memory == "low"
    assert start.model.startswith("/")


def test_the_application_starts_its_engine_and_leaves_its_end_to_the_caller(tmp_path: Path) -> None:
    calls = []

    class Watched(FakeEngine):
        async def start(self) -> None:
            calls.append("start")

        async def stop(self, drain_s: float) -> None:
            calls.append("stop")

    metrics = Metrics()
    engine = cast(Engine, Watched())
    settings = Settings(data_dir=tmp_path)
    jobs, outputs = open_jobs(settings, engine, metrics, Quotas())
    sources = sources_of(settings, outputs)
    app = assemble(engine, metrics, Answers(0, metrics=metrics), jobs, outputs, sources)

    async def live() -> None:
        async with app.router.lifespan_context(app):
            assert calls == ["start"]

    assert calls == []
    asyncio.run(live())
    assert calls == ["start"]
