"""What unfinished jobs start from, as files beside their store: a job that was accepted has its picture.

A source is megabytes, and a job is written again whenever it moves: what is stored of it has the name of its
source alone. `server.jobs` keeps it before it accepts a job, reads it when it runs one, and drops it at the
end.
"""

import asyncio
import secrets
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from server.errors import Overloaded, StorageUnavailable
from server.folder import Folder
from server.generation import GenerationRequest, Source
from server.job import Job, StoredSource

LEVEL: Final = 1  # photographs become 0.6 of their pixels, 60 MB a second
RETRY_SOON_S: Final = 5.0

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Source] = msgspec.msgpack.Decoder(Source)


class SourceFiles:
    """The sources in `folder`, of at most about `limit_bytes` together."""

    def __init__(self, folder: Path, *, limit_bytes: int) -> None:
        self._folder = Folder(folder)
        self._limit_bytes = limit_bytes
        self._kept_bytes = 0

    async def start(self, unfinished: Iterable[Job]) -> None:
        """Remove what these jobs do not name: sources of jobs that were never accepted, or had finished."""
        known = {job.source.name: job.source.size_bytes for job in unfinished if job.source is not None}
        self._kept_bytes = sum(known.values())
        await asyncio.to_thread(
            lambda: self._folder.drop([name for name, _ in self._folder.listed() if name not in known])
        )

    async def keep(self, job: Job) -> Job:
        """Return a job as it can be stored, its source on the disk and no longer in it.

        Raises `Overloaded` or `StorageUnavailable`.
        """
        source = job.request.source
        if source is None:
            return job
        if self._kept_bytes >= self._limit_bytes:
            message = f"{self._kept_bytes >> 20} MiB of pictures wait to be worked on, and no more are kept"
            raise Overloaded(message, retry_after_s=RETRY_SOON_S)
        try:
            stored = await asyncio.to_thread(self._write, source)
        except OSError as fault:
            message = "jobs cannot be stored at the moment"
            raise StorageUnavailable(message, retry_after_s=RETRY_SOON_S) from fault
        self._kept_bytes += stored.size_bytes
        request = msgspec.structs.replace(job.request, source=None)
        return msgspec.structs.replace(job, request=request, source=stored)

    async def request_of(self, job: Job) -> GenerationRequest:
        """Return what a job asks for, with its source; raises `OSError` or `ValueError` if that is lost."""
        if job.source is None:
            return job.request
        source = await asyncio.to_thread(self._read, job.source.name)
        return msgspec.structs.replace(job.request, source=source)

    def drop(self, job: Job) -> None:
        """Remove the source of a job that needs it no longer; returns before it is gone."""
        if job.source is not None:
            self._kept_bytes -= job.source.size_bytes
            asyncio.get_running_loop().run_in_executor(None, self._folder.drop, [job.source.name])

    def _write(self, source: Source) -> StoredSource:
        data = zlib.compress(_encoder.encode(source), LEVEL)
        name = secrets.token_urlsafe(16)
        self._folder.write(name, data)
        self._folder.sync()
        return StoredSource(name=name, size_bytes=len(data))

    def _read(self, name: str) -> Source:
        try:
            return _decoder.decode(zlib.decompress(self._folder.read(name)))
        except (zlib.error, msgspec.MsgspecError) as error:
            raise ValueError(f"the source {name} is not what was written") from error
