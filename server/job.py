"""What a job is: a request that was accepted and stored, and how far it has come.

Leaves for everyone who deals with jobs: `server.jobs` runs them, `server.job_store` keeps them, the dialects
of `server.http` show them. Times are Unix seconds, since they outlive the process.
"""

import base64
import secrets
from enum import StrEnum
from typing import Any, Final, NamedTuple

import msgspec

from server.generation import GenerationRequest, Timings

ID_BYTES: Final = 16  # 128 bits are 26 characters of base32


class JobState(StrEnum):
    """Only forward: starting, processing, and one of the three final ones."""

    STARTING = "starting"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def final(self) -> bool:
        return self not in (JobState.STARTING, JobState.PROCESSING)


class JobKey(NamedTuple):
    """Who may speak of which job. Ids of one dialect and owner are apart from those of all others."""

    dialect: str
    owner: str
    id: str


class Webhook(msgspec.Struct, frozen=True, kw_only=True):
    """Where to tell what becomes of a job, and of which events; their names are the dialect's."""

    url: str
    events: tuple[str, ...]


class StoredImage(msgspec.Struct, frozen=True, kw_only=True):
    """One finished picture; `name` is its file in `server.picture_files`."""

    name: str
    content_type: str
    width: int
    height: int
    seed: int
    size_bytes: int


class StoredSource(msgspec.Struct, frozen=True, kw_only=True):
    """What an unfinished job starts from; `name` is its file in `server.source_files`."""

    name: str
    size_bytes: int


class JobError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job failed; `code` is one of `server.errors`."""

    code: str
    message: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One accepted request.

    `source` is where the source of `request` is kept, which is not in it once the job is stored.
    `input` is what the client sent, in the words of its dialect, and `base_url` the address that it used:
    both are for showing the job again. `seeded` when the client chose the seed. At `deadline_s` the job is
    cancelled. `timings` are those of `GenerationResult`.
    """

    key: JobKey
    request: GenerationRequest
    seeded: bool
    input: dict[str, Any]
    source: StoredSource | None = None
    base_url: str = ""
    webhook: Webhook | None = None
    deadline_s: float | None = None
    state: JobState = JobState.STARTING
    created_s: float = 0.0
    started_s: float | None = None
    completed_s: float | None = None
    images: tuple[StoredImage, ...] = ()
    timings: Timings | None = None
    error: JobError | None = None


def new_job_id() -> str:
    """Return an id that cannot be guessed: 26 characters of lower-case base32."""
    return base64.b32encode(secrets.token_bytes(ID_BYTES)).decode().rstrip("=").lower()
