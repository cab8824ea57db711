"""The engine: requests become pictures, forecasts and errors, each its own."""

import asyncio
import re

import pytest

from server.engine import Engine
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    Overloaded,
)
from server.events import Advanced, Event
from server.generation import Preview, Priority, Source
from server.roster import Progress, Watch
from server.stats import ServerState
from server.supervisor import State
from tests.server.engines import ask, engine_on, request, run, until


def test_several_pictures_come_in_the_order_of_their_seeds() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            result = await engine.submit(request(num_images=4, seed=10))
            assert [image.seed for image in result.images] == [10, 11, 12, 13]
            assert engine.stats().backlog_s == 0.0

    run(story)


def test_a_failed_picture_fails_its_request_only() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            answers = await asyncio.gather(ask(engine, request("fail")), ask(engine, request("sleep 0.1")))
            assert answers == [GenerationFailed.code, "ok"]

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


def test_what_a_picture_took_is_charged_once_however_it_ended() -> None:
    charged: list[tuple[str, float]] = []

    async def story() -> None:
        async with engine_on(charge=lambda key, device_s: charged.append((key, device_s))) as engine:
            assert await ask(engine, request("twice", key="done")) == "ok"
            assert await ask(engine, request("fail", key="failed")) == "generation_failed"
            for key in ("left", "told"):
                leaver = asyncio.create_task(ask(engine, request("step 5", key=key, id=key)))
                await until(lambda: engine.stats().queue.running[Priority.NORMAL] == 1)
                if key == "left":
                    leaver.cancel()
                else:
                    await engine.cancel("told", key="told")
                await asyncio.wait((leaver,))
            await until(lambda: len(charged) == 4)
            assert await ask(engine, request("a", key="last")) == "ok"

    run(story)
    assert charged == [("done", 0.01), ("failed", 0.02), ("left", 0.03), ("told", 0.03), ("last", 0.01)]


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


def test_a_source_leaves_out_steps_wherever_they_are_counted() -> None:
    source = Source(pixels=bytes(3 * 256 * 256), strength=0.3)

    async def story() -> None:
        async with engine_on() as engine:
            heard: list[Event] = []
            watch = Watch(listen=lambda _, event: heard.append(event))
            result = await engine.submit(request("show", steps=4, source=source, previews=3), watch=watch)
            assert (result.steps, result.run_steps) == (4, 2)
            assert [event for event in heard if isinstance(event, Advanced)] == [
                Advanced(1, 2),
                Advanced(2, 2),
            ]
            assert [event.step for event in heard if isinstance(event, Preview)] == [1]
            asked = asyncio.create_task(ask(engine, request("hang", id="mine", steps=4, source=source)))
            await until(lambda: engine.stats().in_hand == 1)
            assert engine.progress("mine") == Progress(pictures=1, steps_done=0, steps=2)
            asked.cancel()

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
