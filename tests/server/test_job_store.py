"""What SQLite keeps: states that only move forward, and one server for one folder."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import StorageUnavailable
from server.generation import Image, Timings
from server.job import Job, JobKey, JobState, StoredImage, new_job_id
from server.job_store import JobStore
from server.picture_files import PictureFiles
from tests.server.engines import request

STATES = list(JobState)
ROOT = Path(__file__).resolve().parents[2]


def opened(folder: Path) -> JobStore:
    store = JobStore(folder / "jobs.sqlite")
    store.open()
    return store


def job(name: str = "j", **changes: object) -> Job:
    made = Job(key=JobKey("replicate", "", name), request=request(), seeded=True, input={"a": [1, "ü"]})
    return msgspec.structs.replace(made, **changes)


def in_state(made: Job, state: JobState) -> Job:
    return msgspec.structs.replace(made, state=state, completed_s=1.0 if state.final else None)


def test_ids_cannot_be_guessed() -> None:
    ids = {new_job_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(each) == 26 and set(each) <= set("abcdefghijklmnopqrstuvwxyz234567") for each in ids)


def test_a_job_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    made = job(created_s=1.5, deadline_s=2.5)
    store = opened(tmp_path)
    assert store.add(made)
    assert not store.add(made), "there is one with this key"
    store.close()
    again = opened(tmp_path)
    assert again.find(made.key) == made
    assert again.unfinished() == [made]
    again.close()


@settings(max_examples=20)
@given(st.lists(st.sampled_from(STATES[1:]), max_size=6))
def test_states_only_move_forward(tmp_path_factory: pytest.TempPathFactory, wanted: list[JobState]) -> None:
    store = opened(tmp_path_factory.mktemp("store"))
    made, state = job(), JobState.STARTING
    store.add(made)
    for each in wanted:
        allowed = not state.final and each is not state
        assert store.move(in_state(made, each)) is allowed
        state = each if allowed else state
        found = store.find(made.key)
        assert found is not None
        assert found.state is state
    store.close()


def test_sql_itself_refuses_to_go_back(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add(job())
    store.move(in_state(job(), JobState.CANCELED))
    store.close()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        for state in STATES:
            with pytest.raises(sqlite3.IntegrityError):
                database.execute("UPDATE jobs SET state = ?", (state.value,))
    database.close()


def test_a_folder_belongs_to_one_server(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(StorageUnavailable, match="another server uses it"):
        opened(tmp_path)
    store.close()
    opened(tmp_path).close()


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(StorageUnavailable, match="not a database"):
        opened(tmp_path)
    assert (tmp_path / "jobs.sqlite").read_bytes().startswith(b"something else")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageUnavailable, match="newer version"):
        opened(tmp_path)


def test_a_full_disk_refuses_what_is_new_and_goes_on_reading(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store._database is not None
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages + 2}")
    kept = []
    large = {"text": "x" * 2000}
    while len(kept) < 1000:
        try:
            store.add(job(f"j{len(kept)}", input=large))
        except StorageUnavailable:
            break
        kept.append(f"j{len(kept)}")
    assert 0 < len(kept) < 1000
    assert all(store.find(job(name).key) for name in kept)
    store._database.execute("PRAGMA max_page_count = 100000")
    assert store.add(job("later"))
    store.close()


def test_the_oldest_finished_jobs_make_room(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for number in range(4):
        made = job(f"j{number}")
        store.add(made)
        image = StoredImage(
            name=f"{number}.png", content_type="image/png", width=1, height=1, seed=1, size_bytes=1000
        )
        if number != 1:
            done = in_state(made, JobState.SUCCEEDED)
            store.move(msgspec.structs.replace(done, completed_s=float(number), images=(image,)))
    assert store.purge(before_s=-1.0, limit_bytes=1 << 30).files == ()
    assert store.purge(before_s=0.0, limit_bytes=1 << 30).files == ("0.png",), "it expired"
    assert store.purge(before_s=0.0, limit_bytes=1).files == ("2.png", "3.png")
    assert [each.key.id for each in store.unfinished()] == ["j1"], "what is to be done stays"
    store.close()


CHILD = """
import sys
from pathlib import Path
from tests.server.test_job_store import job, opened
store = opened(Path(sys.argv[1]))
for number in range(10**6):
    store.add(job(f"j{number}"))
    print(number, flush=True)
"""


def test_what_was_accepted_survives_a_process_that_is_killed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(20)]
    os.kill(child.pid, signal.SIGKILL)
    told += child.stdout.read().splitlines(keepends=True)
    child.stdout.close()
    child.wait()
    last = max(int(line) for line in told if line.endswith("\n"))
    store = opened(tmp_path)
    assert len(store.unfinished()) >= last + 1
    store.close()


def picture(data: bytes = b"data") -> Image:
    return Image(data=data, content_type="image/jpeg", width=1, height=1, seed=1, timings=Timings())


def test_pictures_are_whole_and_expire(tmp_path: Path) -> None:
    now = time.time()
    files = PictureFiles(tmp_path, lifetime_s=100.0, clock=lambda: now)
    (kept,) = files.keep([picture()])
    found = files.read(kept.name)
    assert found is not None
    assert (found.data, found.content_type) == (b"data", "image/jpeg")
    assert 99 < found.left_s <= 101
    now += 102
    assert files.read(kept.name) is None
    files.sweep()
    assert list(tmp_path.iterdir()) == []


def test_half_written_pictures_are_removed_at_the_start(tmp_path: Path) -> None:
    (tmp_path / f"{'a' * 22}.png.part").write_bytes(b"half")
    PictureFiles(tmp_path, lifetime_s=100.0)
    assert list(tmp_path.iterdir()) == []
