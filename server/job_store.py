"""The jobs and the webhook deliveries of one data directory, in SQLite.

Every call is one transaction and on the disk when it returns (WAL with `synchronous=FULL`). All of them
block: `run` makes them one after the other in a thread of their own. That states only move
forward is checked here, in the statement and again by a trigger. One server owns a data directory: the file
stays locked while it runs, and the lock ends with the process, however that ends.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import msgspec

from server.errors import StorageUnavailable
from server.job import Job, JobKey, JobState

SCHEMA_VERSION: Final = 1
BUSY_S: Final = 1.0
PURGED_AT_ONCE: Final = 200  # so that a purge holds up nobody
SCHEMA: Final = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    dialect TEXT NOT NULL,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('starting', 'processing', 'succeeded', 'failed', 'canceled')),
    created_s REAL NOT NULL,
    completed_s REAL CHECK ((completed_s IS NULL) = (state IN ('starting', 'processing'))),
    size_bytes INTEGER NOT NULL,
    job BLOB NOT NULL,
    UNIQUE (dialect, owner, id)
) STRICT;
CREATE INDEX jobs_by_completion ON jobs (completed_s, size_bytes);
CREATE TRIGGER jobs_only_move_forward BEFORE UPDATE OF state ON jobs
WHEN NOT (OLD.state = 'starting' AND NEW.state <> 'starting'
          OR OLD.state = 'processing' AND NEW.state NOT IN ('starting', 'processing'))
BEGIN SELECT RAISE(ABORT, 'a job only moves forward'); END;
CREATE TABLE deliveries (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE,
    id TEXT NOT NULL UNIQUE,
    event TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    due_s REAL NOT NULL,
    snapshot BLOB NOT NULL
) STRICT;
CREATE INDEX deliveries_by_job ON deliveries (job);
CREATE TABLE secrets (name TEXT PRIMARY KEY, secret TEXT NOT NULL) STRICT;
"""
EARLIER: Final = {
    JobState.PROCESSING: (JobState.STARTING,),
    JobState.SUCCEEDED: (JobState.STARTING, JobState.PROCESSING),
    JobState.FAILED: (JobState.STARTING, JobState.PROCESSING),
    JobState.CANCELED: (JobState.STARTING, JobState.PROCESSING),
}


Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One webhook call that is owed: `job` as it was when `event` happened, next tried at `due_s`.

    `id` stays the same over all attempts, so that a receiver can tell a repetition.
    """

    id: str
    event: str
    job: Job
    attempts: int
    due_s: float


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """What a purge removed; `files` are the pictures that nothing names any more."""

    files: tuple[str, ...]
    more: bool


class JobStore:
    """Raises `StorageUnavailable` where the disk is full, read-only or broken, or the file not ours."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database: sqlite3.Connection | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="jobs")

    async def run(
        self, call: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
    ) -> Result:
        """Make one of the calls below off the event loop; cancelling the wait does not undo the call."""
        bound = partial(call, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._thread, bound)

    def open(self) -> None:
        """Open or create the file, and lock it."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Calls come from one thread at a time, though not always from the one that opened it.
            self._database = database = sqlite3.connect(
                self._path, isolation_level=None, timeout=BUSY_S, check_same_thread=False
            )
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute("PRAGMA foreign_keys = ON")
            with self._transaction() as opened:
                _prepare(opened)
        except StorageUnavailable:
            self._disconnect()
            raise
        except (sqlite3.Error, OSError) as error:
            self._disconnect()
            locked = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
            reason = "another server uses it" if locked else str(error)
            raise StorageUnavailable(f"jobs cannot be kept in {self._path.parent}: {reason}") from error

    def close(self) -> None:
        """Let go of the file; what was stored is whole with or without this."""
        self._thread.shutdown()
        self._disconnect()

    def add(self, job: Job) -> bool:
        """Store a new job; False when there is one with its key already."""
        with self._transaction() as database:
            row = (*job.key, job.state, job.created_s, job.completed_s, _size_bytes(job), _encode(job))
            inserted = database.execute(
                "INSERT INTO jobs (dialect, owner, id, state, created_s, completed_s, size_bytes, job) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                row,
            )
            return inserted.rowcount == 1

    def move(self, job: Job, deliveries: Sequence[Delivery] = ()) -> bool:
        """Take a job to its new state and owe `deliveries` for it; False when it cannot go there any more."""
        earlier = EARLIER[job.state]
        with self._transaction() as database:
            moved = database.execute(
                "UPDATE jobs SET state = ?, completed_s = ?, size_bytes = ?, job = ? WHERE dialect = ? "  # noqa: S608 - only question marks are filled in
                f"AND owner = ? AND id = ? AND state IN ({', '.join('?' * len(earlier))}) RETURNING number",
                (job.state, job.completed_s, _size_bytes(job), _encode(job), *job.key, *earlier),
            ).fetchone()
            if moved is None:
                return False
            database.executemany(
                "INSERT INTO deliveries (job, id, event, attempts, due_s, snapshot) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (*moved, each.id, each.event, each.attempts, each.due_s, _encode(each.job))
                    for each in deliveries
                ],
            )
            return True

    def find(self, key: JobKey) -> Job | None:
        """Return the job of this key."""
        with self._transaction() as database:
            row = database.execute(
                "SELECT job FROM jobs WHERE dialect = ? AND owner = ? AND id = ?", key
            ).fetchone()
            return None if row is None else _decode(row[0])

    def newest(
        self,
        *,
        dialect: str,
        owner: str,
        limit: int,
        before: int | None = None,
        created_after_s: float = float("-inf"),
        created_before_s: float = float("inf"),
    ) -> list[tuple[int, Job]]:
        """Return the newest jobs with their numbers, of those that were stored before number `before`."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT number, job FROM jobs WHERE dialect = ? AND owner = ? AND number < ? "
                "AND created_s > ? AND created_s < ? ORDER BY number DESC LIMIT ?",
                (dialect, owner, before or 1 << 62, created_after_s, created_before_s, limit),
            )
            return [(number, _decode(job)) for number, job in rows]

    def unfinished(self) -> list[Job]:
        """Return the jobs that are still to be done, in the order in which they came."""
        with self._transaction() as database:
            rows = database.execute("SELECT job FROM jobs WHERE completed_s IS NULL ORDER BY number")
            return [_decode(job) for (job,) in rows]

    def purge(self, *, before_s: float, limit_bytes: int) -> Purged:
        """Remove finished jobs: those completed before `before_s`, then the oldest beyond `limit_bytes`.

        Removes a few at a time; `more` says that there are others.
        """
        with self._transaction() as database:
            (excess_bytes,) = database.execute("SELECT coalesce(sum(size_bytes), 0) FROM jobs").fetchone()
            excess_bytes -= limit_bytes
            rows = database.execute(
                "SELECT number, completed_s, size_bytes, job FROM jobs WHERE completed_s IS NOT NULL "
                "ORDER BY completed_s LIMIT ?",
                (PURGED_AT_ONCE,),
            ).fetchall()
            gone: list[tuple[int, bytes]] = []
            for number, completed_s, size_bytes, job in rows:
                if completed_s > before_s and excess_bytes <= 0:
                    break
                excess_bytes -= size_bytes
                gone.append((number, job))
            database.executemany("DELETE FROM jobs WHERE number = ?", [(number,) for number, _ in gone])
        files = tuple(image.name for _, job in gone for image in _decode(job).images)
        return Purged(files=files, more=len(gone) == PURGED_AT_ONCE)

    def owed(self) -> list[Delivery]:
        """Return the deliveries that are still to be made, in the order in which they came about."""
        with self._transaction() as database:
            rows = database.execute(
                "SELECT id, event, snapshot, attempts, due_s FROM deliveries ORDER BY number"
            )
            return [
                Delivery(id=id, event=event, job=_decode(snapshot), attempts=attempts, due_s=due_s)
                for id, event, snapshot, attempts, due_s in rows
            ]

    def postpone(self, delivery: Delivery) -> None:
        """Keep how often a delivery was tried and when it is next."""
        with self._transaction() as database:
            database.execute(
                "UPDATE deliveries SET attempts = ?, due_s = ? WHERE id = ?",
                (delivery.attempts, delivery.due_s, delivery.id),
            )

    def settle(self, delivery_id: str) -> None:
        """A delivery was made or given up: it is owed no longer."""
        with self._transaction() as database:
            database.execute("DELETE FROM deliveries WHERE id = ?", (delivery_id,))

    def secret(self, name: str, new: str) -> str:
        """Return the secret of this name; `new` becomes it if there is none."""
        with self._transaction() as database:
            database.execute("INSERT INTO secrets VALUES (?, ?) ON CONFLICT DO NOTHING", (name, new))
            (kept,) = database.execute("SELECT secret FROM secrets WHERE name = ?", (name,)).fetchone()
            return str(kept)

    def _disconnect(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        database = self._database
        assert database is not None, "the store is open"
        try:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
            except BaseException:
                database.rollback()
                raise
            database.execute("COMMIT")
        except sqlite3.IntegrityError:
            raise  # a statement of ours is wrong
        except sqlite3.Error as error:
            if database.in_transaction:
                database.rollback()
            raise StorageUnavailable("jobs cannot be stored at the moment", retry_after_s=5) from error


def _prepare(database: sqlite3.Connection) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise StorageUnavailable(f"a newer version of the server wrote the jobs (schema {version})")
    if version == 0:
        for statement in _statements(SCHEMA):
            database.execute(statement)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _statements(script: str) -> Iterator[str]:
    """Cut a script into its statements; `executescript` would end the transaction around it."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _encode(job: Job) -> bytes:
    return msgspec.json.encode(job)


def _decode(job: bytes) -> Job:
    return msgspec.json.decode(job, type=Job)


def _size_bytes(job: Job) -> int:
    """What a job takes on the disk: its pictures, and what it says."""
    return sum(image.size_bytes for image in job.images) + len(_encode(job))
