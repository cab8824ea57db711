"""What is finished leaves when its time is up, or when there is too much of it: jobs, pictures, uploads."""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from server.errors import StorageUnavailable
from server.job_store import JobStore
from server.picture_files import PictureFiles
from server.uploads import Uploads

PURGE_S: Final = 60.0

log = structlog.get_logger(__name__)


class Expiry:
    """Keeps finished jobs for `lifetime_s`, and of those no more than take `limit_bytes` on the disk.

    `clock` is Unix time.
    """

    def __init__(
        self,
        store: JobStore,
        files: PictureFiles,
        uploads: Uploads,
        *,
        lifetime_s: float,
        limit_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._files = files
        self._uploads = uploads
        self._lifetime_s = lifetime_s
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._purging: asyncio.Task[None] | None = None
        self._due = asyncio.Event()

    def start(self) -> None:
        """Begin to remove what has expired, now and every now and then."""
        self._purging = asyncio.create_task(self._purge())

    def soon(self) -> None:
        """Something has been finished: there may be too much of it."""
        self._due.set()

    async def stop(self) -> None:
        """Leave the rest to the next process."""
        if self._purging is not None:
            self._purging.cancel()
            await asyncio.wait([self._purging])

    async def _purge(self) -> None:
        loop = asyncio.get_running_loop()
        swept_s = -math.inf
        while True:
            self._due.clear()
            try:
                if loop.time() - swept_s >= PURGE_S:  # first, since a disk that is full takes no statement
                    swept_s = loop.time()
                    await asyncio.to_thread(self._files.sweep)
                    await asyncio.to_thread(self._uploads.sweep)
                await self._purge_jobs()
            except (StorageUnavailable, OSError) as fault:
                log.error("purge_failed", reason=str(fault))
            with suppress(TimeoutError):
                async with asyncio.timeout(PURGE_S):
                    await self._due.wait()

    async def _purge_jobs(self) -> None:
        more = True
        while more:
            before_s = self._clock() - self._lifetime_s
            purged = await self._store.run(
                self._store.purge, before_s=before_s, limit_bytes=self._limit_bytes
            )
            await asyncio.to_thread(self._files.drop, purged.files)
            more = purged.more
