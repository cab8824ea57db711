"""API keys: a file of names, hashes and limits that a person can edit, read again whenever it changes.

    [alice]                          # the name; it is what logs show
    hash = "sha256:9f86d0…"          # of the key; the key itself is nowhere
    priority = "normal"              # the class of its requests, and the most urgent that they may ask for
    requests_per_minute = 60         # this and what follows may be left out: then there is no limit
    concurrent_requests = 4
    device_seconds_per_day = 3600.0
    admin = true                     # it may put and remove adapters; false if left out

`python -m server.keys create NAME` makes a key, prints it once and adds its entry. SHA-256 is right for these
keys because they are 256 random bits: nobody guesses them, however fast the hash. A slow hash protects what
people think up, and would cost 150 ms a request.
"""

import argparse
import contextlib
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import structlog

from server.generation import Priority

PREFIX: Final = "schnell_"  # so that scanners for leaked secrets know one
SECRET_BYTES: Final = 32
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
NAME_RULE: Final = "1 to 64 letters, digits, - and _, the first a letter or a digit"
DEFAULT_FILE: Final = "keys.toml"
FILE_VARIABLE: Final = "FLUX_API_KEYS_FILE"

MOST: Final = 10**9  # what headers and floats take
Count = Annotated[int, msgspec.Meta(ge=1, le=MOST)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=MOST)]
_Signature = tuple[int, int, int]

log = structlog.get_logger(__name__)


class KeysFileError(Exception):
    """The file cannot be read, or says something that it must not; the message names the entry."""


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of the file. A limit that is None does not exist; `admin` may change what is served."""

    name: str
    hash: Annotated[str, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$")]
    priority: Priority = Priority.NORMAL
    requests_per_minute: Count | None = None
    concurrent_requests: Count | None = None
    device_seconds_per_day: Seconds | None = None
    admin: bool = False


@dataclass(slots=True)
class KeysFile:
    """The keys of a file, as it is now; made by `KeysFile.read`."""

    path: Path
    _hashed: list[tuple[bytes, Key]] = field(default_factory=list)
    _signature: _Signature | None = None

    @classmethod
    def read(cls, path: Path) -> "KeysFile":
        """Read the file for the first time; raises `KeysFileError`."""
        made = cls(path)
        made._load()
        return made

    def find(self, secret: bytes) -> Key | None:
        """Return the entry of a key, if it is in the file.

        All are compared, each in constant time, so that how long it takes tells nothing of any: 0.1 ms for a
        thousand keys.
        """
        self._refresh()
        digest = _hash(secret).encode()
        matches = [key for hashed, key in self._hashed if hmac.compare_digest(hashed, digest)]
        return matches[0] if matches else None

    def _refresh(self) -> None:
        """Look whether the file changed, which costs 2 µs; a broken one leaves the keys as they were."""
        if _signature(self.path) == self._signature:
            return
        try:
            self._load()
        except KeysFileError as error:
            log.error("keys_not_reloaded", reason=str(error), keys=len(self._hashed))
        else:
            log.info("keys_reloaded", keys=len(self._hashed))

    def _load(self) -> None:
        self._signature = _signature(self.path)  # before it is read: a change meanwhile is seen next time
        keys = parse(_text(self.path))
        self._hashed = [(key.hash.encode(), key) for key in keys.values()]


def parse(text: str) -> dict[str, Key]:
    """Return the keys of a file by their names; raises `KeysFileError`."""
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise KeysFileError(f"the keys file is not TOML: {error}") from None
    keys = {name: _key(name, table) for name, table in tables.items()}
    names: dict[str, str] = {}
    for name, key in keys.items():
        if names.setdefault(key.hash, name) != name:
            raise KeysFileError(f"[{name}]: hash is that of [{names[key.hash]}]; allowed: a key of its own")
    return keys


def _key(name: str, table: Any) -> Key:  # noqa: ANN401 - whatever TOML has
    if not NAME.fullmatch(name):
        raise KeysFileError(f"[{name[:80]!a}]: this is no name of a key; allowed: {NAME_RULE}")
    if not isinstance(table, dict) or "name" in table:
        raise KeysFileError(f"[{name}]: allowed: a table with {', '.join(Key.__struct_fields__[1:])}")
    try:
        return msgspec.convert({"name": name, **table}, Key)
    except msgspec.ValidationError as error:
        raise KeysFileError(f"[{name}]: {error}") from None


def new_secret() -> str:
    """Return a key that nobody has: 256 random bits behind a prefix."""
    return PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def entry(key: Key) -> str:
    """Return a key's part of the file."""
    shown = {name: getattr(key, name) for name in Key.__struct_fields__[1:]}
    lines = [
        f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {str(value).lower()}"
        for name, value in shown.items()
        if value is not None and value is not False
    ]
    return "\n".join((f"[{key.name}]", *lines, ""))


def create(path: Path, name: str, **limits: Any) -> str:  # noqa: ANN401 - fields of Key
    """Add a new key to the file, which need not exist, and return it; raises `KeysFileError`."""
    secret = new_secret()
    added = _key(name, {"hash": _hash(secret.encode()), **limits})
    with _changing(path):
        text = _text(path) if path.exists() else ""
        if name in parse(text):
            raise KeysFileError(f"[{name}]: there is such a key in {path}; allowed: a new name")
        _replace(path, text.rstrip("\n") + ("\n\n" if text.strip() else "") + entry(added))
    return secret


def revoke(path: Path, name: str) -> None:
    """Take a key out of the file and leave everything else as it is written; raises `KeysFileError`."""
    with _changing(path):
        text = _text(path)
        before = parse(text)
        if name not in before:
            known = ", ".join(before) or "none"
            raise KeysFileError(f"[{name}]: there is no such key in {path}; there are: {known}")
        after = re.sub(
            rf"^[ \t]*\[[ \t]*{name}[ \t]*\].*\n?(?:(?![ \t]*\[).*\n?)*", "", text, flags=re.MULTILINE
        )
        if _parses_to(after, {other: key for other, key in before.items() if other != name}):
            _replace(path, after)
        else:
            raise KeysFileError(
                f"[{name}]: it is written in a way that only its author can take out of {path}"
            )


def _parses_to(text: str, keys: dict[str, Key]) -> bool:
    try:
        return parse(text) == keys
    except KeysFileError:
        return False


def _hash(secret: bytes) -> str:
    return "sha256:" + hashlib.sha256(secret).hexdigest()


def _signature(path: Path) -> _Signature | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise KeysFileError(f"{path} cannot be read: {reason}") from None


@contextlib.contextmanager
def _changing(path: Path) -> Iterator[None]:
    """Let one process at a time change the file; by a lock on its folder, since the file is replaced."""
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise KeysFileError(f"{path.parent} cannot be opened: {error.strerror}") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace(path: Path, text: str) -> None:
    """Write the whole file anew: a server that reads it meanwhile sees the old one or the new one."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644  # hashes are no secret
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError as error:
        raise KeysFileError(f"{path} cannot be written: {error.strerror}") from None


def _table(keys: dict[str, Key]) -> str:
    columns = [name for name in Key.__struct_fields__ if name != "hash"]
    rows = [columns, *([_cell(getattr(key, column)) for column in columns] for key in keys.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _cell(value: Any) -> str:  # noqa: ANN401 - of any field of Key
    return "yes" if value is True else str(value or "-")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m server.keys", description="Make and revoke API keys.")
    commands = parser.add_subparsers(dest="command", required=True)
    creating = commands.add_parser("create", help="make a key, print it once, and add it to the file")
    creating.add_argument("name", help=NAME_RULE)
    creating.add_argument("--priority", choices=[each.value for each in Priority], help="default: normal")
    creating.add_argument("--requests-per-minute", type=int, metavar="N")
    creating.add_argument("--concurrent-requests", type=int, metavar="N")
    creating.add_argument("--device-seconds-per-day", type=float, metavar="S")
    creating.add_argument("--admin", action="store_const", const=True, help="let it put and remove adapters")
    listing = commands.add_parser("list", help="show the names and limits of all keys")
    revoking = commands.add_parser("revoke", help="take a key out of the file")
    revoking.add_argument("name")
    file = Path(os.environ.get(FILE_VARIABLE, DEFAULT_FILE))
    for command in (creating, listing, revoking):
        help_ = f"default: {FILE_VARIABLE}, else {DEFAULT_FILE} in the working directory"
        command.add_argument("--file", type=Path, default=file, help=help_)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; what is wrong with it is one line on stderr and status 2."""
    asked = _arguments().parse_args(arguments)
    try:
        match asked.command:
            case "create":
                limits = {name: getattr(asked, name) for name in Key.__struct_fields__[2:]}
                given = {name: value for name, value in limits.items() if value is not None}
                sys.stdout.write(f"{create(asked.file, asked.name, **given)}\n")
            case "list":
                sys.stdout.write(_table(parse(_text(asked.file))))
            case "revoke":
                revoke(asked.file, asked.name)
    except KeysFileError as error:
        sys.stderr.write(f"server.keys: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
