"""Jobs on an engine, in a folder of their own."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from server.addresses import Addresses
from server.engine import Engine
from server.expiry import Expiry
from server.job import Job, JobKey, new_job_id
from server.job_store import JobStore
from server.jobs import Jobs
from server.metrics import Metrics
from server.picture_files import PictureFiles
from server.quotas import Quotas
from server.signatures import Signatures
from server.source_files import SourceFiles
from server.uploads import Uploads
from server.webhooks import Webhooks
from tests.server.engines import request


def job(prompt: str = "a", *, owner: str = "", deadline_s: float | None = None, **changes: Any) -> Job:
    name = new_job_id()
    return Job(
        key=JobKey("replicate", owner, name),
        request=request(prompt, id=name, **changes),
        seeded=False,
        input={"prompt": prompt},
        deadline_s=deadline_s,
    )


def files_in(folder: Path) -> PictureFiles:
    return PictureFiles(folder / "files", lifetime_s=60)


@asynccontextmanager
async def jobs_on(
    engine: Engine,
    folder: Path,
    *,
    lifetime_s: float = 60.0,
    limit_bytes: int = 1 << 20,
    max_unfinished: int = 100,
    quotas: Quotas | None = None,
) -> AsyncIterator[Jobs]:
    metrics = Metrics()
    store = JobStore(folder / "jobs.sqlite")
    store.open()
    jobs = Jobs(
        engine,
        store,
        files_in(folder),
        SourceFiles(folder / "sources", limit_bytes=limit_bytes),
        Webhooks(store, {}, Signatures.of(store), Addresses(), metrics=metrics),
        Expiry(
            store,
            files_in(folder),
            Uploads(folder / "uploads", lifetime_s=lifetime_s, limit_bytes=limit_bytes),
            lifetime_s=lifetime_s,
            limit_bytes=limit_bytes,
        ),
        metrics=metrics,
        quotas=quotas or Quotas(),
        max_unfinished=max_unfinished,
    )
    await jobs.start()
    try:
        yield jobs
    finally:
        await jobs.stop()


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(story(), 60))  # type: ignore[arg-type]
