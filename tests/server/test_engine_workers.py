"""Workers that die, hang, lie or never come: nobody is left without an answer."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from server.errors import (
    DeadlineExceeded,
    NotReady,
    Overloaded,
    WorkerLost,
)
from server.generation import Priority
from tests.server.engines import ask, engine_on, request, run, until, worker_pid


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


@pytest.mark.parametrize("prompt", ["garbage", "oversized"])
def test_a_worker_that_talks_nonsense_is_replaced(prompt: str) -> None:
    async def story() -> None:
        async with engine_on() as engine:
            first = await worker_pid(engine)
            assert await ask(engine, request(prompt)) == WorkerLost.code
            assert await ask(engine, request()) == "ok"
            assert await worker_pid(engine) != first

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
