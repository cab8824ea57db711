"""One run for all who want the same picture, on real child processes, and nobody suffers from the others."""

import asyncio
import os
import re
import signal
import time
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
from server.generation import GenerationResult, Priority
from server.reuse import Reuse
from tests.server.engines import engine_on, request, run, until, worker_pid
from tests.server.test_metrics import samples

LONG = "sleep 0.5"
CACHE_BYTES = 1 << 20


def asking(
    engine: Engine, prompt: str = LONG, *, reuse: Reuse = Reuse.ALLOWED, **changes: Any
) -> "asyncio.Task[GenerationResult | str]":
    """Begin to ask; what comes of it is the answer, or the code of an error."""

    async def ask() -> GenerationResult | str:
        try:
            return await engine.submit(request(prompt, **changes), reuse)
        except ServerError as error:
            return error.code

    return asyncio.create_task(ask())


async def gather(*tasks: "asyncio.Task[GenerationResult | str]") -> list[GenerationResult]:
    """Return answers that are all pictures."""
    answers = await asyncio.gather(*tasks)
    assert all(isinstance(answer, GenerationResult) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, GenerationResult)]


def counted(engine: Engine, *name: str) -> float:
    return samples(engine._metrics).get(name, 0.0)


def test_eight_who_want_the_same_picture_cost_one() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            tasks = [asking(engine, id=f"request-{number}") for number in range(8)]
            await until(lambda: engine.stats().in_hand > 0)
            assert engine.stats().in_hand == 1
            assert engine.stats().backlog_s == pytest.approx(0.01), "that of one picture"
            results = await gather(*tasks)
            assert len({result.images[0].data for result in results}) == 1
            assert [result.id for result in results] == [f"request-{number}" for number in range(8)]
            assert [result.joined for result in results] == [0] + [1] * 7
            assert counted(engine, "flux_images_total") == 1
            assert counted(engine, "flux_image_cache_total", "flight") == 7
            assert engine.stats().backlog_s == 0.0

    run(story)


def test_requests_share_the_pictures_where_their_seeds_meet() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            four = asking(engine, seed=7, num_images=4)
            one = asking(engine, seed=8)
            overlapping = asking(engine, seed=9, num_images=4)
            await until(lambda: engine.stats().in_hand > 0)
            assert engine.stats().in_hand == 6
            (first, second, third) = await gather(four, one, overlapping)
            assert second.images == first.images[1:2]
            assert third.images[:2] == first.images[2:]
            assert [image.seed for image in third.images] == [9, 10, 11, 12]
            assert (first.joined, second.joined, third.joined) == (0, 1, 2)

    run(story)


def test_other_pictures_are_not_shared() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            tasks = [asking(engine, seed=1), asking(engine, seed=2), asking(engine, steps=3)]
            await until(lambda: engine.stats().in_hand == 3)
            assert [result.joined for result in await gather(*tasks)] == [0, 0, 0]

    run(story)


def test_who_joins_has_waited_and_done_nothing_else() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            first = asking(engine)
            await until(lambda: engine.stats().in_hand == 1)
            await asyncio.sleep(0.2)
            began = time.monotonic()
            second = asking(engine)
            (made, joined) = await gather(first, second)
            waited_s = time.monotonic() - began
            assert made.timings.denoise_s == 0.01
            assert joined.timings.denoise_s == joined.timings.device_s == 0.0
            assert joined.timings.queue_s == joined.timings.total_s
            assert 0 < joined.timings.total_s <= waited_s
            assert joined.timings.total_s <= made.timings.total_s - 0.2

    run(story)


def test_a_shared_picture_is_charged_to_who_has_waited_longest_for_it() -> None:
    charged: list[tuple[str, float]] = []

    async def story() -> None:
        async with engine_on(charge=lambda key, device_s: charged.append((key, device_s))) as engine:
            first, second, third = (asking(engine, key=key) for key in ("first", "second", "third"))
            await until(lambda: engine.stats().in_hand == 1)
            first.cancel()
            await gather(second, third)

    run(story)
    assert charged == [("second", 0.01)]


def test_who_leaves_takes_nothing_from_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with engine_on() as engine:
            first, second, third = (asking(engine) for _ in range(3))
            await until(lambda: engine.stats().in_hand == 1)
            for leaver in (first, third):
                leaver.cancel()
                await asyncio.wait([leaver])
            assert engine.stats().in_hand == 1
            await gather(second)
            assert engine.stats().backlog_s == 0.0
            assert counted(engine, "flux_images_total") == 1

    run(story)
    assert "cancelled" not in capfd.readouterr().err


def test_the_last_to_leave_ends_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with engine_on() as engine:
            tasks = [asking(engine, "sleep 5", id="leaver") for _ in range(3)]
            await until(lambda: engine.stats().in_hand == 1)
            for task in tasks:
                assert engine.stats().in_hand == 1
                task.cancel()
                await asyncio.wait([task])
            assert engine.stats().in_hand == 0
            assert engine.stats().backlog_s == 0.0
            (again,) = await gather(asking(engine, "sleep 0"))
            assert again.joined == 0

    run(story)
    assert len(re.findall(r"cancelled leaver#\d+/0", capfd.readouterr().err)) == 1


def test_only_who_sent_a_request_can_cancel_it_by_its_id() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            unwanted, wanted = (asking(engine, id="same", key=key) for key in ("alice", "bob"))
            await until(lambda: engine.stats().in_hand == 1)
            await engine.cancel("same")
            await engine.cancel("same", key="alice")
            assert await unwanted == Cancelled.code
            await gather(wanted)

    run(story)


def test_a_request_that_is_cancelled_by_its_id_is_the_only_one() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            unwanted, wanted = asking(engine, id="unwanted"), asking(engine, id="wanted")
            await until(lambda: engine.stats().in_hand == 1)
            await engine.cancel("unwanted")
            assert await unwanted == Cancelled.code
            await gather(wanted)

    run(story)


def test_a_deadline_is_that_of_one_request() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            hasty, patient = asking(engine, deadline_s=0.2), asking(engine)
            assert await hasty == DeadlineExceeded.code
            await gather(patient)
            patient, hasty = asking(engine), asking(engine, deadline_s=0.2)
            assert await hasty == DeadlineExceeded.code
            await gather(patient)

    run(story)


def revisions(text: str) -> list[tuple[str, float | None]]:
    """Return the priorities and deadlines that the worker was told."""
    found = re.findall(r"revised \S+ (\w+) (\S+)", text)
    return [(priority, None if left == "None" else float(left)) for priority, left in found]


def test_the_worker_hears_of_more_urgency_and_more_time_and_of_nothing_less(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def story() -> None:
        async with engine_on() as engine:
            tasks = [asking(engine, priority=Priority.LOW, deadline_s=10.0)]
            await until(lambda: engine.stats().in_hand == 1)
            for priority, deadline_s in (
                (Priority.LOW, 5.0),
                (Priority.NORMAL, 5.0),
                (Priority.LOW, 20.0),
                (Priority.HIGH, None),
                (Priority.NORMAL, 30.0),
            ):
                tasks.append(asking(engine, priority=priority, deadline_s=deadline_s))
            await gather(*tasks)

    run(story)
    (first, second, third) = revisions(capfd.readouterr().err)
    assert (first[0], second[0], third) == ("normal", "normal", ("high", None))
    assert 9 < first[1] <= 10  # type: ignore[operator]
    assert 19 < second[1] <= 20  # type: ignore[operator]


def test_a_run_that_waits_for_a_worker_is_handed_over_as_the_most_urgent_wants_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def story() -> None:
        async with engine_on(ready=False) as engine:
            async with asyncio.timeout(20):
                await engine.wait_ready()
            os.kill(await worker_pid(engine), signal.SIGKILL)
            await until(lambda: not engine.ready)
            tasks = [asking(engine, "late", deadline_s=10.0), asking(engine, "late", priority=Priority.HIGH)]
            await gather(*tasks)

    run(story)
    assert revisions(capfd.readouterr().err) == []


def test_a_run_that_was_dropped_too_early_for_one_who_joined_is_run_again() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            hasty = asking(engine, "late 0.5", deadline_s=10.0)
            await until(lambda: engine.stats().in_hand == 1 and engine.stats().backlog_s == 0)
            patient = asking(engine, "late 0.5")
            await until(lambda: engine.stats().backlog_s == pytest.approx(0.01))
            (_, joined) = await gather(hasty, patient)
            assert joined.joined == 1

    run(story)


def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    async def story() -> None:
        async with engine_on(image_cache_bytes=CACHE_BYTES) as engine:
            tasks = [asking(engine, "fail") for _ in range(3)]
            assert await asyncio.gather(*tasks) == [GenerationFailed.code] * 3
            assert await asking(engine, "fail") == GenerationFailed.code
            assert counted(engine, "flux_image_cache_total", "miss") == 2

    run(story)


def test_a_killed_worker_costs_none_of_them_their_picture() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            tasks = [asking(engine) for _ in range(4)]
            await until(lambda: engine.stats().in_hand == 1)
            os.kill(await worker_pid(engine), signal.SIGKILL)
            await until(lambda: engine.stats().in_hand == 0)
            tasks.append(asking(engine))
            assert len({result.images[0].data for result in await gather(*tasks)}) == 1

    run(story)


def test_a_picture_that_kills_twice_fails_all_who_wait_for_it() -> None:
    async def story() -> None:
        async with engine_on() as engine:
            tasks = [asking(engine, "die") for _ in range(3)]
            neighbour = asking(engine)
            assert await asyncio.gather(*tasks) == [WorkerLost.code] * 3
            await gather(neighbour)

    run(story)


def test_a_full_backlog_refuses_new_pictures_and_nobody_who_joins() -> None:
    async def story() -> None:
        async with engine_on(max_backlog_s=0.015, image_cache_bytes=CACHE_BYTES) as engine:
            await gather(asking(engine, "kept"))
            first = asking(engine)
            await until(lambda: engine.stats().in_hand == 1)
            backlog_s = engine.stats().backlog_s
            assert await asking(engine, seed=2) == Overloaded.code
            assert await asking(engine, seed=1, num_images=2) == Overloaded.code
            joined, kept = asking(engine), asking(engine, "kept")
            await gather(kept)
            assert engine.stats().backlog_s == backlog_s
            await gather(first, joined)

    run(story)


def test_who_wants_nothing_of_others_has_a_run_of_its_own() -> None:
    async def story() -> None:
        async with engine_on(image_cache_bytes=CACHE_BYTES) as engine:
            tasks = [asking(engine, reuse=Reuse.NEVER) for _ in range(2)]
            tasks.append(asking(engine))
            tasks.append(asking(engine, reuse=Reuse.FRESH))
            await until(lambda: engine.stats().in_hand == 4)
            results = await gather(*tasks)
            assert len({result.images[0].data for result in results}) == 4
            assert all(result.joined == result.cached == 0 for result in results)

    run(story)


def test_a_finished_picture_is_given_again_at_once() -> None:
    async def story() -> None:
        async with engine_on(image_cache_bytes=CACHE_BYTES) as engine:
            (first,) = await gather(asking(engine, "sleep 0.3", seed=7, num_images=2))
            began = time.monotonic()
            (again,) = await gather(asking(engine, "sleep 0.3", seed=8, deadline_s=0.1))
            assert time.monotonic() - began < 0.1
            assert again.images == first.images[1:]
            assert (again.cached, again.joined) == (1, 0)
            assert again.timings.denoise_s == 0.0
            assert again.timings.queue_s == again.timings.total_s < 0.1
            assert counted(engine, "flux_image_cache_total", "hit") == 1
            assert counted(engine, "flux_images_total") == 2
            assert counted(engine, "flux_image_cache_bytes") > sum(len(each.data) for each in first.images)

    run(story)


def test_a_fresh_run_replaces_the_picture_and_a_private_one_does_not() -> None:
    async def story() -> None:
        async with engine_on(image_cache_bytes=CACHE_BYTES) as engine:

            async def ask(reuse: Reuse) -> bytes:
                (result,) = await gather(asking(engine, "a", reuse=reuse))
                return result.images[0].data

            private = await ask(Reuse.NEVER)
            kept = await ask(Reuse.ALLOWED)
            assert kept != private, "the private one was kept"
            assert await ask(Reuse.NEVER) != kept
            assert await ask(Reuse.ALLOWED) == kept
            fresh = await ask(Reuse.FRESH)
            assert fresh != kept
            assert await ask(Reuse.ALLOWED) == fresh

    run(story)


def test_pictures_that_were_found_and_made_come_in_the_order_of_their_seeds() -> None:
    async def story() -> None:
        async with engine_on(image_cache_bytes=CACHE_BYTES) as engine:
            await gather(asking(engine, seed=2), asking(engine, seed=4))
            joined = asking(engine, seed=3)
            (all_four,) = await gather(asking(engine, seed=1, num_images=4))
            await gather(joined)
            assert [image.seed for image in all_four.images] == [1, 2, 3, 4]
            assert (all_four.cached, all_four.joined) == (2, 1)
            assert all_four.timings.denoise_s == 0.01, "that of the one that was made"

    run(story)


def test_stopping_answers_all_who_wait() -> None:
    async def story() -> None:
        async with engine_on(image_cache_bytes=CACHE_BYTES) as engine:
            await gather(asking(engine, "kept"))
            tasks = [asking(engine, "sleep 30") for _ in range(3)]
            await until(lambda: engine.stats().in_hand == 1)
            await engine.stop(0)
            assert await asyncio.gather(*tasks) == [NotReady.code] * 3
            assert await asking(engine, "kept") == NotReady.code

    run(story)
