"""What a job starts from is kept beside it, on the real engine with workers that misbehave."""

import asyncio
import os
import sys
import zlib
from pathlib import Path

import msgspec
import pytest

from server.errors import Overloaded
from server.generation import GenerationRequest, Source
from server.job import Job, JobState
from tests.server.engines import engine_on
from tests.server.job_worlds import files_in, job, jobs_on, run


def test_what_a_job_starts_from_is_there_after_the_restart_and_gone_with_the_job(tmp_path: Path) -> None:
    source = Source(pixels=os.urandom(256 * 256 * 3), strength=0.5, mask=b"m" * 256 * 256)

    def sources() -> list[str]:
        return [each.name for each in (tmp_path / "sources").iterdir()]

    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            left = await jobs.submit(job("sleep 0.5", source=source))
            assert (left.request.source, left.source is not None) == (None, True)
            assert len(msgspec.json.encode(left)) < 2000, "it is not written again with every state"
            await engine.stop(0)
        assert len(sources()) == 1
        (tmp_path / "sources" / "left-by-a-killed-process").write_bytes(b"")
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            assert len(sources()) == 1
            done = await jobs.wait(left.key, 20)
            assert done.state is JobState.SUCCEEDED
            picture = files_in(tmp_path).read(done.images[0].name)
            assert picture is not None
            assert picture.data.endswith(f" from {zlib.crc32(source.pixels)}".encode())
            while sources():
                await asyncio.sleep(0.01)

    run(story)


def test_what_waiting_jobs_start_from_is_bounded(tmp_path: Path) -> None:
    source = Source(pixels=os.urandom(256 * 256 * 3), strength=0.5)

    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path, limit_bytes=100_000) as jobs:
            first = await jobs.submit(job("sleep 60", source=source))
            with pytest.raises(Overloaded, match="pictures wait to be worked on"):
                await jobs.submit(job("sleep 60", source=source))
            assert len(list((tmp_path / "sources").iterdir())) == 1
            await jobs.cancel(first.key)
            last = await jobs.submit(job(source=source))
            assert (await jobs.wait(last.key, 20)).state is JobState.SUCCEEDED

    run(story)


def test_a_job_that_waits_for_room_leaves_its_source_on_the_disk(tmp_path: Path) -> None:
    read: list[bytes] = []

    async def story() -> None:
        loaded = tmp_path / "loaded"
        async with (
            engine_on(f"after {loaded}", ready=False, max_backlog_s=0.02) as engine,
            jobs_on(engine, tmp_path) as jobs,
        ):
            request_of = jobs._sources.request_of

            async def noted(job: Job) -> GenerationRequest:
                request = await request_of(job)
                if request.source is not None:
                    read.append(request.source.pixels)
                return request

            await jobs.submit(job("sleep 30"))
            await jobs.submit(job(source=Source(pixels=os.urandom(256 * 256 * 3), strength=0.5)))
            jobs._sources.request_of = noted  # type: ignore[method-assign]
            loaded.touch()
            async with asyncio.timeout(10):
                while not read or sys.getrefcount(read[-1]) > 2:  # of the list and of the call
                    await asyncio.sleep(0.01)

    run(story)


def test_a_source_that_is_lost_fails_its_job_alone(tmp_path: Path) -> None:
    async def story() -> None:
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            left = await jobs.submit(job("sleep 0.5", source=Source(pixels=b"abc", strength=0.5)))
            await engine.stop(0)
        (only,) = (tmp_path / "sources").iterdir()
        only.write_bytes(b"nonsense")
        async with engine_on() as engine, jobs_on(engine, tmp_path) as jobs:
            assert (await jobs.wait(left.key, 20)).state is JobState.FAILED
            assert (await jobs.wait((await jobs.submit(job())).key, 20)).state is JobState.SUCCEEDED

    run(story)
