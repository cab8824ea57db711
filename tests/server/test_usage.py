"""What keys have used of a day outlives the process that counted it."""

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.errors import QuotaExceeded
from server.keys import Key
from server.quotas import DAY_S, Quotas
from server.usage import UsageFile

NOON = 20_000.5 * DAY_S
KEY = Key(name="alice", hash="sha256:" + "0" * 64, device_seconds_per_day=10.0)


def usage(path: Path, now: float = NOON) -> UsageFile:
    return UsageFile(path / "data" / "usage.json", Quotas(), lambda: now)


def leave(made: UsageFile, device_s: float) -> None:
    """Let a process use the device and end in good order."""

    async def life() -> None:
        async with made.kept():
            made.quotas.charge("alice", device_s, made.clock())

    asyncio.run(life())


def test_a_restart_does_not_begin_the_day_anew(tmp_path: Path) -> None:
    for _ in range(3):
        leave(usage(tmp_path), 4.0)
    again = usage(tmp_path)
    again.load()
    with pytest.raises(QuotaExceeded, match="has used 12"):
        again.quotas.enter(KEY, NOON)


def test_it_is_written_while_the_server_runs(tmp_path: Path) -> None:
    made = usage(tmp_path)
    made.every_s = 0.001

    async def life() -> None:
        async with made.kept(), asyncio.timeout(10):
            made.quotas.charge("alice", 4.0, NOON)
            while not made.path.exists() or b"alice" not in made.path.read_bytes():
                await asyncio.sleep(0.001)

    asyncio.run(life())


def test_yesterday_is_forgotten(tmp_path: Path) -> None:
    leave(usage(tmp_path), 40.0)
    tomorrow = usage(tmp_path, NOON + DAY_S)
    tomorrow.load()
    tomorrow.quotas.enter(KEY, NOON + DAY_S)
    tomorrow.save()
    assert b"alice" not in tomorrow.path.read_bytes()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"day": 1}', b'{"day": 1, "device_s": {"a": "b"}}'])
def test_a_broken_file_says_nothing_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    made = usage(tmp_path)
    made.path.parent.mkdir()
    made.path.write_bytes(content)
    with capture_logs() as logs:
        leave(made, 4.0)
    assert [line["event"] for line in logs] == ["usage_not_read"]
    again = usage(tmp_path)
    again.load()
    assert again.quotas.today(NOON).device_s == {"alice": 4.0}


def test_a_folder_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with capture_logs() as logs:
        leave(usage(tmp_path), 4.0)
    assert {line["event"] for line in logs} == {"usage_not_read", "usage_not_kept"}


def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    made = usage(tmp_path)
    made.quotas.charge("alice", 1.0, NOON)
    made.save()
    made.path.unlink()
    made.save()
    assert not made.path.exists()
