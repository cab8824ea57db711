"""The engine on real child processes that misbehave: everybody is answered, once, with their own picture."""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from server.engine import Engine
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    NotReady,
    Overloaded,
    ServerError,
    WorkerLost,
)
from server.generation import GenerationRequest, Priority
from server.metrics import Metrics
from server.protocol import Start
from server.roster import Progress
from server.stats import ServerState
from server.supervisor import State

COMMAND = (sys.executable, "-m", "tests.server.fake_worker")
NAMES = iter(range(10**9))


def start(model: str = "fake", device: str = "cpu") -> Start:
    return Start(
        model=model,
        device=device,
        dtype="auto",
        numerics="auto",
        kernels="auto",
        quantize="none",
        memory="full",
        threads=1,
        max_steps=0,
        data_dir="/nowhere",
        calibration_s=0.0,
        conditioning_cache_bytes=0,
        verify_weights="never",
        allow_pickle=False,
        log_format="text",
        log_level="info",
    )


@asynccontextmanager
async def engine_on(
    *models: str,
    max_backlog_s: float = 100.0,
    default_deadline_s: float | None = None,
    hang_s: float = 60.0,
    image_cache_bytes: int = 0,
    ready: bool = True,
) -> AsyncIterator[Engine]:
    engine = Engine(
        [start(model) for model in models or ("fake",)],
        metrics=Metrics(),
        max_backlog_s=max_backlog_s,
        default_deadline_s=default_deadline_s,
        auto_steps_backlog_s=(2.0, 4.0, 6.0),
        hang_s=hang_s,
        image_cache_bytes=image_cache_bytes,
        command=COMMAND,
    )
    await engine.start()
    try:
        if ready:
            async with asyncio.timeout(20):
                await engine.wait_ready()
        yield engine
    finally:
        await engine.stop(0)


def request(prompt: str = "a", **changes: Any) -> GenerationRequest:
    fields = {"id": f"request-{next(NAMES)}", "prompt": prompt, "width": 256, "height": 256, "steps": 4}
    return GenerationRequest(**(fields | {"seed": 1, "max_sequence_length": 64} | changes))


async def ask(engine: Engine, wanted: GenerationRequest) -> list[str] | str:
    """Return the pictures as text, or the code of the error; checks that they are the asked ones."""
    try:
        async with asyncio.timeout(30):
            result = await engine.submit(wanted)
    except ServerError as error:
        return error.code
    for index, image in enumerate(result.images):
        name = (
            re.escape(wanted.id) + rf"#\d+/{index} seed {wanted.seed + index} {wanted.width}x{wanted.height}"
        )
        assert re.fullmatch(name, image.data.decode())
    assert len(result.images) == wanted.num_images
    return "ok"


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))  # type: ignore[arg-type]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def worker_pid(engine: Engine) -> int:
    pid = engine._workers[0].supervisor.pid
    assert pid is not None
    return pid


def test_several_pictures_come_in_the_order_of_their_seeds() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            result = await engine.submit(request(num_images=4, seed=10))
            assert [image.seed for image in result.images] == [10, 11, 12, 13]
            assert engine.stats().backlog_s == 0.0

    run(story)


def test_a_killed_worker_costs_nobody_their_picture() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            asked = [asyncio.create_task(ask(engine, request("sleep 0.5", seed=seed))) for seed in range(8)]
            await asyncio.sleep(0.1)
            os.kill(await worker_pid(engine), signal.SIGKILL)
            assert await asyncio.gather(*asked) == ["ok"] * 8
            assert engine.stats().in_hand == sum(engine.stats().queue.waiting.values()) == 0

    run(story)


def test_a_picture_that_kills_twice_takes_no_neighbour_with_it() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            neighbours = [asyncio.create_task(ask(engine, request("sleep 0.3"))) for _ in range(4)]
            killer = asyncio.create_task(ask(engine, request("die")))
            assert await killer == WorkerLost.code
            assert await asyncio.gather(*neighbours) == ["ok"] * 4
            assert await ask(engine, request()) == "ok"

    run(story)


def test_a_picture_that_kills_once_is_made_the_second_time(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine:
            assert await ask(engine, request(f"die once {tmp_path / 'marker'}")) == "ok"

    run(story)


def test_pictures_that_were_in_no_step_are_not_suspected(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine:
            marker = tmp_path / "marker"
            bystanders = [asyncio.create_task(ask(engine, request(f"meet {marker}"))) for _ in range(4)]
            while engine.stats().in_hand < 4:
                await asyncio.sleep(0)
            assert await ask(engine, request(f"die once {marker}")) == "ok"
            assert await asyncio.gather(*bystanders) == ["ok"] * 4, "they ran beside each other"

    run(story)


def test_a_suspect_on_one_worker_keeps_no_other_worker_waiting(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on("fake", "fake", "fake") as engine:
            while engine.stats().workers_ready < 3:
                await asyncio.sleep(0.01)
            suspect = asyncio.create_task(ask(engine, request(f"die once {tmp_path / 'marker'}")))
            while engine.stats().workers_ready == 3:
                await asyncio.sleep(0.001)
            assert await ask(engine, request()) == "ok"
            assert not suspect.done()
            assert await suspect == "ok"

    run(story)


def test_lost_pictures_move_to_another_worker(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on("fake", "fake") as engine:
            while engine.stats().workers_ready < 2:
                await asyncio.sleep(0.01)
            killer = f"die once {tmp_path / 'marker'}"
            began = time.monotonic()
            assert await ask(engine, request(killer)) == "ok"
            assert time.monotonic() - began < 5

    run(story)


def test_a_failed_picture_fails_its_request_only() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            answers = await asyncio.gather(ask(engine, request("fail")), ask(engine, request("sleep 0.1")))
            assert answers == [GenerationFailed.code, "ok"]

    run(story)


@pytest.mark.parametrize("prompt", ["garbage", "oversized"])
def test_a_worker_that_talks_nonsense_is_replaced(prompt: str) -> None:
    async def story() -> None:
        async with engine_on() as engine:
            first = await worker_pid(engine)
            assert await ask(engine, request(prompt)) == WorkerLost.code
            assert await ask(engine, request()) == "ok"
            assert await worker_pid(engine) != first

    run(story)


@pytest.mark.parametrize("prompt", ["other id", "twice"])
def test_answers_that_nobody_asked_for_reach_nobody(prompt: str) -> None:
    async def story() -> None:
        async with engine_on() as engine:
            answers = await asyncio.gather(ask(engine, request(prompt)), ask(engine, request("sleep 0.1")))
            assert answers == ["ok", "ok"]

    run(story)


def test_a_client_that_leaves_cancels_its_work(capfd: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with engine_on() as engine:
            leaving = asyncio.create_task(engine.submit(request("sleep 5", id="leaver", num_images=2)))
            await asyncio.sleep(0.1)
            assert engine.stats().in_hand == 2
            leaving.cancel()
            await asyncio.wait([leaving])
            assert engine.stats().in_hand == 0
            assert engine.stats().backlog_s == 0.0
            assert await ask(engine, request()) == "ok"

    run(story)
    cancelled = re.findall(r"cancelled leaver#\d+/(\d)", capfd.readouterr().err)
    assert sorted(cancelled) == ["0", "1"]


def test_a_request_can_be_cancelled_by_its_id(capfd: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with engine_on() as engine:
            cancelled = asyncio.create_task(ask(engine, request("sleep 5", id="unwanted", num_images=2)))
            kept = asyncio.create_task(ask(engine, request("sleep 0.3")))
            await asyncio.sleep(0.1)
            await engine.cancel("never heard of")
            await engine.cancel("unwanted", key="somebody else's")
            await engine.cancel("unwanted")
            assert await cancelled == Cancelled.code
            assert engine.stats().in_hand == 1
            assert await kept == "ok"
            assert engine.stats().backlog_s == 0.0

    run(story)
    assert sorted(re.findall(r"cancelled unwanted#\d+/(\d)", capfd.readouterr().err)) == ["0", "1"]


def test_how_far_a_request_is_can_be_asked() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            asked = asyncio.create_task(ask(engine, request("half", id="mine", num_images=2, steps=4)))
            others = asyncio.create_task(ask(engine, request("hang")))
            while engine.progress("mine").steps_done < 4:
                await asyncio.sleep(0.01)
            assert engine.progress("mine") == Progress(pictures=2, steps_done=4, steps=8)
            assert engine.progress("nobody's") == Progress(pictures=0, steps_done=0, steps=0)
            await engine.cancel("mine")
            assert await asked == Cancelled.code
            assert engine.progress("mine").pictures == 0
            others.cancel()

    run(story)


def test_a_deadline_is_kept_even_by_a_worker_that_hangs() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            began = time.monotonic()
            assert await ask(engine, request("hang", deadline_s=0.3)) == DeadlineExceeded.code
            assert time.monotonic() - began < 2

    run(story)


def test_a_worker_that_hangs_is_replaced_though_its_clients_left() -> None:
    """A stopped process says nothing, not even that it forgot what was cancelled."""

    async def story() -> None:
        async with engine_on(hang_s=0.5) as engine:
            first = await worker_pid(engine)
            os.kill(first, signal.SIGSTOP)
            assert await ask(engine, request(deadline_s=0.1)) == DeadlineExceeded.code
            while engine._workers[0].supervisor.pid in (first, None):
                await asyncio.sleep(0.01)
            await engine.wait_ready()
            assert await ask(engine, request()) == "ok"

    run(story)


def test_a_worker_that_hangs_is_replaced() -> None:
    async def story() -> None:
        async with engine_on(hang_s=0.5) as engine:
            assert await ask(engine, request("hang")) == WorkerLost.code
            assert await ask(engine, request("sleep 0.2")) == "ok"
            await asyncio.sleep(0.8)
            assert engine.ready, "a worker without work may be silent"

    run(story)


def test_a_worker_with_a_step_that_hangs_is_replaced_though_others_go_on() -> None:
    """Other lanes still end their steps, and the reader still says that it forgot what was cancelled."""

    async def story() -> None:
        async with engine_on(hang_s=0.5) as engine, asyncio.timeout(20):
            first = await worker_pid(engine)
            assert await ask(engine, request("hang", deadline_s=0.1)) == DeadlineExceeded.code
            while engine._workers[0].supervisor.pid == first:
                assert await ask(engine, request()) == "ok"

    run(story)


def test_the_same_request_id_twice_is_two_requests() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            asked = [ask(engine, request("sleep 0.1", id="same", seed=seed)) for seed in (1, 2, 3)]
            assert await asyncio.gather(*asked) == ["ok"] * 3

    run(story)


def test_the_stats_tell_what_waits_and_what_runs() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            idle = engine.stats()
            assert (idle.state, idle.in_hand, idle.backlog_s) == (ServerState.READY, 0, 0.0)
            assert idle.queue.predicted_s == pytest.approx(0.01)
            assert (idle.queue.auto_steps, idle.queue.limit_s) == (4, 100.0)
            waits = request("meet /nowhere", priority=Priority.LOW, id="waiting")
            waiting = asyncio.create_task(ask(engine, waits))
            running = asyncio.create_task(ask(engine, request("step 0.5", width=512)))
            await until(lambda: engine.stats().queue.running[Priority.NORMAL] == 1)
            await until(lambda: engine.stats().backlog_s < 0.02)  # its step is over
            stats = engine.stats()
            assert stats.queue.waiting == {Priority.HIGH: 0, Priority.NORMAL: 0, Priority.LOW: 1}
            assert stats.backlog_s == pytest.approx(0.01), "of the one that runs nothing is left to do"
            assert stats.queue.predicted_s > 0.01  # type: ignore[operator]
            (worker,) = stats.workers
            assert (worker.state, worker.device, worker.restarts) == (State.READY, "cpu", 0)
            assert (worker.in_hand, worker.sizes) == (2, ["256x256", "512x256"])
            assert worker.backlog_s == pytest.approx(0.01)
            assert 'flux_waiting_images{priority="low"} 1.0' in engine._metrics.exposition().decode()
            await engine.cancel("waiting")
            assert await asyncio.gather(waiting, running) == [Cancelled.code, "ok"]
            await engine.stop(0)
            assert engine.stats().state is ServerState.DRAINING

    run(story)


def test_what_a_dead_worker_had_done_counts_as_not_done() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            asked = asyncio.create_task(ask(engine, request("step 0.5")))
            await until(lambda: engine.stats().queue.running[Priority.NORMAL] == 1)
            os.kill(await worker_pid(engine), signal.SIGKILL)
            await until(lambda: engine.stats().queue.waiting[Priority.NORMAL] == 1)
            assert engine.stats().backlog_s == pytest.approx(0.01)
            assert await asked == "ok"

    run(story)


def test_a_server_without_a_model_has_stats() -> None:
    async def story() -> None:
        async with engine_on("refused", ready=False) as engine:
            await engine.wait_refused()
            stats = engine.stats()
            assert stats.state is ServerState.LOADING
            assert (stats.queue.predicted_s, stats.queue.auto_steps, stats.queue.limit_s) == (None, None, 0.0)

    run(story)


def test_a_request_is_told_its_position_and_when_it_will_be_done() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            before = [asyncio.create_task(ask(engine, request("sleep 0.2"))) for _ in range(3)]
            await until(lambda: engine.stats().in_hand == 3)
            result = await engine.submit(request(num_images=2))
            assert result.forecast is not None
            assert result.forecast.position == 3
            assert 0.04 < result.forecast.finish_s < 0.1
            assert await asyncio.gather(*before) == ["ok"] * 3

    run(story)


def deadlines(engine: Engine) -> dict[str, float]:
    found = re.findall(r'flux_deadlines_total{outcome="(\w+)"} (.+)', engine._metrics.exposition().decode())
    return {outcome: float(count) for outcome, count in found}


def test_who_names_no_deadline_has_the_servers() -> None:
    async def story() -> None:
        async with engine_on(default_deadline_s=0.3) as engine:
            assert await ask(engine, request("hang")) == DeadlineExceeded.code
            assert deadlines(engine) == {"missed": 1}
            assert await ask(engine, request("sleep 0.5", deadline_s=20.0)) == "ok"
            assert deadlines(engine) == {"missed": 1, "met": 1}
            crowd = await asyncio.gather(*(ask(engine, request("sleep 0.1")) for _ in range(60)))
            assert set(crowd) == {"ok", Overloaded.code}
            counts = deadlines(engine)
            assert counts["refused"] == crowd.count(Overloaded.code)
            assert counts["met"] == 1 + crowd.count("ok")

    run(story)


def test_auto_takes_the_steps_of_the_backlog_and_counts_them() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            assert engine.steps_for_auto() == 4
            large = [
                asyncio.create_task(ask(engine, request("sleep 0.3", width=1536, height=1536)))
                for _ in range(9)
            ]
            await until(lambda: engine.stats().in_hand == 9)
            assert 2.0 < engine.stats().backlog_s < 4.0
            assert engine.steps_for_auto() == engine.stats().queue.auto_steps == 3
            await asyncio.gather(*large)
            assert 'flux_auto_steps_total{steps="3"} 1.0' in engine._metrics.exposition().decode()

    run(story)


def test_overload_reaches_no_worker() -> None:
    async def story() -> None:
        async with engine_on(max_backlog_s=0.015) as engine:
            first = asyncio.create_task(ask(engine, request("sleep 0.5")))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            assert await ask(engine, request("die")) == Overloaded.code
            assert time.monotonic() - began < 0.1
            assert await first == "ok"

    run(story)


def test_a_worker_that_never_comes_has_no_share_of_the_backlog() -> None:
    async def story() -> None:
        async with engine_on("fake", "refused", max_backlog_s=0.015) as engine:
            while engine._workers[1].supervisor.refusal == "":
                await asyncio.sleep(0.01)
            first = asyncio.create_task(ask(engine, request("sleep 0.3")))
            await asyncio.sleep(0.1)
            assert await ask(engine, request()) == Overloaded.code
            assert await first == "ok"

    run(story)


def test_stopping_answers_what_it_cannot_finish() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            quick = asyncio.create_task(ask(engine, request("sleep 0.2")))
            slow = asyncio.create_task(ask(engine, request("sleep 30")))
            await asyncio.sleep(0.1)
            stopping = asyncio.create_task(engine.stop(0.5))
            await asyncio.sleep(0.05)
            assert not engine.ready
            assert await ask(engine, request()) == NotReady.code
            assert await quick == "ok"
            assert await slow == NotReady.code
            await stopping

    run(story)


def test_a_refused_checkpoint_is_told_and_not_tried_again() -> None:
    async def story() -> None:
        async with engine_on("refused", ready=False) as engine:
            assert await engine.wait_refused() == "the checkpoint is bad"
            assert await ask(engine, request()) == NotReady.code
            with pytest.raises(NotReady):
                await engine.wait_ready()

    run(story)


def test_a_worker_that_never_starts_keeps_nobody_waiting() -> None:
    async def story() -> None:
        async with engine_on("stillborn", ready=False) as engine:
            assert await ask(engine, request()) == NotReady.code
            assert not engine.ready
            assert "died 5 times" in await engine.wait_refused()

    run(story)


def test_kills_while_restarting_lose_nothing() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            asked = [asyncio.create_task(ask(engine, request("sleep 0.2", seed=i))) for i in range(4)]
            await asyncio.sleep(0.1)
            killed: set[int | None] = {None}
            for _ in range(4):  # the last three while they are still starting
                while (pid := engine._workers[0].supervisor.pid) in killed:
                    await asyncio.sleep(0.005)
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            assert await asyncio.gather(*asked) == ["ok"] * 4

    run(story)
