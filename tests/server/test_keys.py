"""The keys file: what a person may write into it, what the command does to it, and that changes are seen."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from server.generation import Priority
from server.keys import Key, KeysFile, KeysFileError, create, entry, main, new_secret, parse, revoke

ROOT = Path(__file__).resolve().parents[2]


def hashed(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


WRITTEN_BY_HAND = f"""\
# who may come in
[alice]  # since May
hash = "{hashed("one")}"
priority = "high"
requests_per_minute = 60

# the nightly batch
[batch-2]
hash = "{hashed("two")}"
concurrent_requests = 2
device_seconds_per_day = 3600
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(WRITTEN_BY_HAND)
    return file


def find(keys: KeysFile, secret: str) -> str | None:
    found = keys.find(secret.encode())
    return None if found is None else found.name


def test_what_a_person_writes_is_understood() -> None:
    assert parse(WRITTEN_BY_HAND) == {
        "alice": Key(name="alice", hash=hashed("one"), priority=Priority.HIGH, requests_per_minute=60),
        "batch-2": Key(
            name="batch-2", hash=hashed("two"), concurrent_requests=2, device_seconds_per_day=3600.0
        ),
    }
    assert parse("") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[alice", ["not TOML", "end of document"]),
        ("[alice]\n[alice]", ["not TOML", "alice"]),
        ("[alice]", ["[alice]", "hash"]),
        ("alice = 1", ["[alice]", "allowed: a table with hash, priority, requests_per_minute"]),
        ('["two words"]', ["two words", "1 to 64 letters, digits"]),
        ('[alice]\nhash = "sha256:12"', ["[alice]", "hash", "sha256"]),
        (f'[alice]\nhash = "{hashed("a")}"\nprority = "low"', ["[alice]", "prority"]),
        (f'[alice]\nhash = "{hashed("a")}"\npriority = "urgent"', ["[alice]", "priority", "urgent"]),
        (
            f'[alice]\nhash = "{hashed("a")}"\nrequests_per_minute = 0',
            ["[alice]", "requests_per_minute", "1"],
        ),
        (f'[alice]\nhash = "{hashed("a")}"\nconcurrent_requests = "2"', ["[alice]", "concurrent_requests"]),
        (f'[alice]\nhash = "{hashed("a")}"\ndevice_seconds_per_day = -1', ["device_seconds_per_day"]),
        (f'[alice]\nhash = "{hashed("a")}"\ndevice_seconds_per_day = inf', ["device_seconds_per_day"]),
        (f'[alice]\nhash = "{hashed("a")}"\nrequests_per_minute = 1{"0" * 400}', ["requests_per_minute"]),
        (f'[alice]\nhash = "{hashed("a")}"\nname = "bob"', ["[alice]", "allowed"]),
        (f'[a]\nhash = "{hashed("x")}"\n[b]\nhash = "{hashed("x")}"', ["[b]", "that of [a]"]),
    ],
)
def test_what_is_wrong_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(KeysFileError) as caught:
        parse(text)
    for word in words:
        assert word in str(caught.value)


def test_a_key_is_found_by_what_it_is_and_not_by_its_hash(path: Path) -> None:
    keys = KeysFile.read(path)
    assert [find(keys, secret) for secret in ("one", "two")] == ["alice", "batch-2"]
    for wrong in ("", "On", "one ", "ONE", hashed("one"), "x" * 10_000, "é"):
        assert find(keys, wrong) is None


def test_a_change_is_seen_by_the_next_request(path: Path) -> None:
    keys = KeysFile.read(path)
    secret = create(path, "carol")
    assert find(keys, secret) == "carol"
    revoke(path, "alice")
    assert find(keys, "one") is None
    assert find(keys, "two") == "batch-2"


@pytest.mark.parametrize("broken", ["[alice", "\0", "[alice]\nhash = 1", None])
def test_a_broken_file_keeps_the_keys_and_says_so_once(path: Path, broken: str | None) -> None:
    keys = KeysFile.read(path)
    if broken is None:
        path.unlink()
    else:
        path.write_text(broken)
    with capture_logs() as logs:
        assert [find(keys, "one") for _ in range(3)] == ["alice"] * 3
    (line,) = logs
    assert (line["event"], line["log_level"], line["keys"]) == ("keys_not_reloaded", "error", 2)
    path.write_text("[carol]\n" + f'hash = "{hashed("three")}"')
    assert find(keys, "three") == "carol"
    assert find(keys, "one") is None


def test_a_file_that_is_broken_from_the_start_is_no_file_of_keys(path: Path, tmp_path: Path) -> None:
    path.write_bytes(b"\xff")
    with pytest.raises(KeysFileError, match="not UTF-8"):
        KeysFile.read(path)
    with pytest.raises(KeysFileError, match="cannot be read"):
        KeysFile.read(tmp_path / "nowhere.toml")


def test_keys_are_long_and_never_the_same() -> None:
    made = {new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(secret.startswith("schnell_") and len(secret) == 8 + 43 for secret in made)


def test_an_entry_is_read_as_it_was_written() -> None:
    for key in parse(WRITTEN_BY_HAND).values():
        assert parse(entry(key)) == {key.name: key}


def test_a_new_key_leaves_what_a_person_wrote(path: Path) -> None:
    secret = create(path, "carol", priority="low", requests_per_minute=5)
    text = path.read_text()
    assert text.startswith(WRITTEN_BY_HAND)
    assert secret not in text
    made = parse(text)["carol"]
    assert (made.hash, made.priority, made.requests_per_minute) == (hashed(secret), Priority.LOW, 5)


def test_a_revoked_key_leaves_the_others_and_their_comments(path: Path) -> None:
    revoke(path, "alice")
    assert parse(path.read_text()) == {"batch-2": parse(WRITTEN_BY_HAND)["batch-2"]}
    assert path.read_text().startswith("# who may come in\n")
    revoke(path, "batch-2")
    assert parse(path.read_text()) == {}


def test_what_the_command_cannot_take_out_it_leaves(path: Path) -> None:
    for text in (f'alice = {{hash = "{hashed("one")}"}}\n', f'["alice"]\nhash = "{hashed("one")}"\n'):
        path.write_text(text)
        with pytest.raises(KeysFileError, match="only its author can take out"):
            revoke(path, "alice")
        assert path.read_text() == text


def test_names_are_given_once(path: Path) -> None:
    before = path.read_text()
    for name in ("alice", "two words", "", "a" * 65, "-a", "a.b"):
        with pytest.raises(KeysFileError, match="allowed"):
            create(path, name)
    with pytest.raises(KeysFileError, match="there are: alice, batch-2"):
        revoke(path, "bob")
    assert path.read_text() == before


def test_nothing_is_added_to_a_file_that_is_broken(path: Path) -> None:
    path.write_text("[alice")
    with pytest.raises(KeysFileError, match="not TOML"):
        create(path, "bob")
    assert path.read_text() == "[alice"


def test_many_at_once_lose_no_key_and_a_reader_sees_no_half(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    create(path, "first")
    keys = KeysFile.read(path)
    with ThreadPoolExecutor(8) as threads, capture_logs() as logs:
        made = [threads.submit(create, path, f"key-{number}") for number in range(24)]
        while not all(each.done() for each in made):
            find(keys, "nobody's")
    assert [find(keys, each.result()) for each in made] == [f"key-{number}" for number in range(24)]
    assert not [line for line in logs if line["event"] == "keys_not_reloaded"]
    assert [each.name for each in tmp_path.iterdir()] == ["keys.toml"]


def test_the_command_prints_the_key_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ["--file", str(path)]
    arguments = ["--priority", "low", "--requests-per-minute", "9", "--device-seconds-per-day", "1.5"]
    arguments.append("--admin")
    assert main(["create", "carol", *arguments, *file]) == 0
    secret = capsys.readouterr().out.strip()
    assert find(KeysFile.read(path), secret) == "carol"
    assert main(["list", *file]) == 0
    head, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert "hash" not in head
    assert [line[0] for line in lines] == ["alice", "batch-2", "carol"]
    assert lines[1][-1] == "-"
    assert lines[2] == ["carol", "low", "9", "-", "1.5", "yes"]
    assert "admin = true" in path.read_text()
    assert main(["revoke", "carol", *file]) == 0
    assert find(KeysFile.read(path), secret) is None


def test_what_is_wrong_is_one_line_and_status_2(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "server.keys", "revoke", "alice", "--file", str(tmp_path / "none")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert "cannot be read: No such file" in line
