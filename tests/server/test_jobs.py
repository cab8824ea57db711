"""Jobs on the real engine, with workers that misbehave: accepted means stored, and stored means finished."""

import asyncio
import os
import re
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from server.errors import NotFound, Overloaded, RateLimited
from server.generation import Image, Timings
from server.job import JobState, StoredImage
from server.keys import Key
from server.picture_files import PictureFiles
from server.quotas import Quotas
from tests.server.engines import engine_on
from tests.server.job_worlds import files_in, job, jobs_on, run


def test_a_job_goes_through_its_states_and_keeps_its_pictures(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            accepted = await jobs.submit(job("sleep 0.2", num_images=2, seed=7))
            assert accepted.state in (JobState.STARTING, JobState.PROCESSING)
            states = [seen.state async for seen in jobs.changes(accepted.key)]
            assert states[-2:] == [JobState.PROCESSING, JobState.SUCCEEDED]
            done = await jobs.get(accepted.key)
            assert done.created_s <= (done.started_s or 0) <= (done.completed_s or 0)
            assert [image.seed for image in done.images] == [7, 8]
            kept = [files_in(tmp_path).read(image.name) for image in done.images]
            seeds = [re.findall(rb"seed (\d+)", each.data) for each in kept if each is not None]
            assert seeds == [[b"7"], [b"8"]]

    run(story)


def test_a_failure_is_the_end_of_its_job(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            accepted = await jobs.submit(job("fail"))
            done = await jobs.wait(accepted.key, 10)
            assert done.state is JobState.FAILED
            assert done.error is not None
            assert done.error.code == "generation_failed"

    run(story)


def test_cancelling_ends_the_work_and_is_final(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            accepted = await jobs.submit(job("sleep 30"))
            assert (await jobs.cancel(accepted.key)).state is JobState.CANCELED
            assert (await jobs.cancel(accepted.key)).state is JobState.CANCELED
            assert (await jobs.wait(accepted.key, 5)).state is JobState.CANCELED
            while engine.stats().backlog_s:
                await asyncio.sleep(0.01)
            done = await jobs.wait((await jobs.submit(job())).key, 10)
            assert (await jobs.cancel(done.key)).state is JobState.SUCCEEDED

    run(story)


def test_a_job_whose_time_is_up_is_cancelled(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            late = job("sleep 30")
            late.request.fitted(engine.model)
            accepted = await jobs.submit(msgspec.structs.replace(late, deadline_s=time.time() + 0.2))
            assert (await jobs.wait(accepted.key, 10)).state is JobState.CANCELED
            assert engine.stats().backlog_s == 0

    run(story)


def test_waiting_ends_with_its_time(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            accepted = await jobs.submit(job("sleep 30"))
            assert not (await jobs.wait(accepted.key, 0.1)).state.final

    run(story)


def test_a_full_backlog_refuses_jobs_and_keeps_nothing_of_them(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on(max_backlog_s=0.02) as engine, jobs_on(engine, tmp_path) as jobs:
            accepted = [await jobs.submit(job("sleep 30")) for _ in range(2)]
            with pytest.raises(Overloaded):
                await jobs.submit(job())
            assert len(await jobs.newest(dialect="replicate", owner="", limit=10)) == len(accepted)

    run(story)


def test_unfinished_jobs_are_bounded(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path, max_unfinished=1) as jobs:
            first = await jobs.submit(job("sleep 30"))
            with pytest.raises(Overloaded, match="limit is 1"):
                await jobs.submit(job())
            await jobs.cancel(first.key)
            assert (await jobs.wait((await jobs.submit(job())).key, 10)).state is JobState.SUCCEEDED

    run(story)


def test_a_key_that_is_known_is_not_run_again(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            wanted = job("sleep 0.3")
            accepted, again = await asyncio.gather(jobs.submit(wanted), jobs.submit(wanted))
            assert accepted.key == again.key
            done = await jobs.wait(wanted.key, 10)
            assert await jobs.submit(wanted) == done
            assert len(await jobs.newest(dialect="replicate", owner="", limit=10)) == 1

    run(story)


def test_nobody_sees_the_jobs_of_another(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            mine = await jobs.submit(job("sleep 1", owner="me"))
            stolen = mine.key._replace(owner="you")
            for ask in (jobs.get, jobs.cancel, lambda key: jobs.wait(key, 1)):
                with pytest.raises(NotFound):
                    await ask(stolen)
            assert await jobs.newest(dialect="replicate", owner="you", limit=10) == []
            assert len(await jobs.newest(dialect="replicate", owner="me", limit=10)) == 1

    run(story)


def test_jobs_that_were_in_hand_at_the_end_run_after_the_restart(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            left = [await jobs.submit(job("sleep 0.5", seed=seed)) for seed in (1, 2)]
            waiting = asyncio.create_task(jobs.wait(left[0].key, 30))
            await engine.stop(0)
            assert not (await waiting).state.final, "who waits is told at once"
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            done = [await jobs.wait(each.key, 20) for each in left]
            assert [each.state for each in done] == [JobState.SUCCEEDED] * 2
            assert [image.seed for each in done for image in each.images] == [1, 2]

    run(story)


def test_jobs_are_taken_in_while_the_model_is_being_loaded(tmp_path: Path) -> None:
    async def story() -> None:
        loaded = tmp_path / "loaded"
        async with (
            engine_on(f"after {loaded}", ready=False) as engine,
            jobs_on(engine, tmp_path) as jobs,
        ):
            accepted = await jobs.submit(job(steps=0, max_sequence_length=0))
            assert accepted.state is JobState.STARTING
            assert jobs.position(accepted.key) == 0
            behind = await jobs.submit(job())
            assert jobs.position(behind.key) == 1
            loaded.touch()
            assert (await jobs.wait(behind.key, 20)).state is JobState.SUCCEEDED

    run(story)


def test_jobs_outlive_processes_that_cannot_load_the_model(tmp_path: Path) -> None:
    async def story() -> None:
        never = f"after {tmp_path / 'never'}"
        async with engine_on(never, ready=False) as engine, jobs_on(engine, tmp_path) as jobs:
            left = await jobs.submit(job(seed=3))
            await engine.stop(0)  # it is stopped while it loads
            assert not (await jobs.wait(left.key, 1)).state.final
        async with engine_on("refused", ready=False) as engine, jobs_on(engine, tmp_path) as jobs:
            assert await engine.wait_refused()
            assert not (await jobs.wait(left.key, 1)).state.final
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            assert (await jobs.wait(left.key, 20)).state is JobState.SUCCEEDED

    run(story)


def test_jobs_count_against_the_limit_of_their_key_after_a_restart(tmp_path: Path) -> None:
    key = Key(name="me", hash="sha256:" + "0" * 64, concurrent_requests=1, requests_per_minute=1)

    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            left = await jobs.submit(job("sleep 1", owner="me"))
            await engine.stop(0)
        quotas = Quotas()
        async with engine_on() as engine, jobs_on(engine, tmp_path, quotas=quotas) as jobs:
            with pytest.raises(RateLimited, match="1 at once"):
                quotas.enter(key, time.time())
            assert (await jobs.wait(left.key, 20)).state is JobState.SUCCEEDED
            quotas.enter(key, time.time())

    run(story)


def test_after_a_restart_accepted_jobs_wait_for_room_instead_of_being_refused(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            left = [await jobs.submit(job("sleep 0.1")) for _ in range(4)]
            await engine.stop(0)
        async with engine_on(max_backlog_s=0.02) as engine, jobs_on(engine, tmp_path) as jobs:
            done = [await jobs.wait(each.key, 30) for each in left]
            assert [each.state for each in done] == [JobState.SUCCEEDED] * 4

    run(story)


def test_a_disk_that_does_not_take_the_pictures_delays_the_end(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            jobs.again_s = 0.01
            (tmp_path / "files").rename(tmp_path / "away")
            accepted = await jobs.submit(job())
            assert not (await jobs.wait(accepted.key, 0.5)).state.final
            (tmp_path / "away").rename(tmp_path / "files")
            done = await jobs.wait(accepted.key, 10)
            assert done.state is JobState.SUCCEEDED
            assert files_in(tmp_path).read(done.images[0].name)

    run(story)


def test_a_job_that_is_cancelled_while_its_pictures_are_kept_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping, go_on, keep = threading.Event(), threading.Event(), PictureFiles.keep

    def keep_slowly(files: PictureFiles, images: Iterable[Image]) -> tuple[StoredImage, ...]:
        keeping.set()
        assert go_on.wait(20)
        return keep(files, images)

    monkeypatch.setattr(PictureFiles, "keep", keep_slowly)

    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            accepted = await jobs.submit(job())
            running = jobs._live[accepted.key].running
            assert running is not None
            await asyncio.to_thread(keeping.wait, 20)
            assert (await jobs.cancel(accepted.key)).state is JobState.CANCELED
            go_on.set()
            await running
            assert list((tmp_path / "files").iterdir()) == []

    run(story)


def test_what_has_expired_goes_also_where_the_disk_takes_no_statement(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    (left,) = files.keep(
        [Image(data=b"x", content_type="image/png", width=1, height=1, seed=1, timings=Timings())]
    )
    os.utime(tmp_path / "files" / left.name, (0, 0))

    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            assert jobs._store._database is not None
            jobs._store._database.execute("PRAGMA query_only = ON")
            while list((tmp_path / "files").iterdir()):
                await asyncio.sleep(0.01)

    run(story)


def test_a_picture_that_is_there_already_needs_no_work(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on(image_cache_bytes=1 << 20) as engine, jobs_on(engine, tmp_path) as jobs:
            seeded = [msgspec.structs.replace(job(seed=5), seeded=True) for _ in range(2)]
            first, second = [await jobs.wait((await jobs.submit(each)).key, 10) for each in seeded]
            assert first.images[0].name != second.images[0].name
            files = files_in(tmp_path)
            kept = [files.read(each.images[0].name) for each in (first, second)]
            assert kept[0] is not None
            assert kept[1] is not None
            assert kept[0].data == kept[1].data
            assert second.started_s is not None

    run(story)


def test_what_is_finished_expires_and_is_bounded(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path, limit_bytes=1) as jobs:
            done = await jobs.submit(job())
            while await jobs.find(done.key):
                await asyncio.sleep(0.01)
            assert list((tmp_path / "files").iterdir()) == []

    run(story)
