"""Uploads: each owner's own, until they expire or there are too many."""

import os
from pathlib import Path

from server.uploads import Uploads

LIFETIME_S = 60.0


def uploads(folder: Path, *, limit_bytes: int = 1000, now_s: float | None = None) -> Uploads:
    clock = {} if now_s is None else {"clock": lambda: now_s}
    return Uploads(folder, lifetime_s=LIFETIME_S, limit_bytes=limit_bytes, **clock)  # type: ignore[arg-type]


def test_a_file_is_found_by_its_owner_alone(tmp_path: Path) -> None:
    files = uploads(tmp_path)
    kept = files.keep("alice", b"a")
    assert files.read("alice", kept.id) == kept
    assert kept.expires_s == kept.created_s + LIFETIME_S
    for owner, id in (("bob", kept.id), ("", kept.id), ("alice", "../" + kept.id), ("alice", "x" * 22)):
        assert files.read(owner, id) is None
        assert not files.drop(owner, id)
    assert files.drop("alice", kept.id)
    assert files.read("alice", kept.id) is None


def test_a_file_expires(tmp_path: Path) -> None:
    kept = uploads(tmp_path).keep("", b"a")
    for now_s, there in ((kept.expires_s - 1, True), (kept.expires_s, False)):
        later = uploads(tmp_path, now_s=now_s)
        assert (later.read("", kept.id) is not None) == there
        assert there or not later.drop("", kept.id)
        later.sweep()
        assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == there


def test_the_oldest_go_first_whoever_owns_them(tmp_path: Path) -> None:
    files = uploads(tmp_path, limit_bytes=25)
    first, second = files.keep("alice", b"a" * 10), files.keep("bob", b"b" * 10)
    for path in tmp_path.rglob(first.id):
        os.utime(path, (first.created_s - 10, first.created_s - 10))
    third = files.keep("bob", b"c" * 10)
    assert files.read("alice", first.id) is None
    assert [files.read("bob", each.id) is not None for each in (second, third)] == [True, True]
