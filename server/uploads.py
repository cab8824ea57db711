"""Files that clients upload to name them in later requests: each owner's own, until they expire.

An owner has a folder of its own, named by a digest, so that nobody finds what is somebody else's. Ids are 128
random bits. All of it blocks: the event loop calls it in threads.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.folder import Folder

ID: Final = re.compile(r"[A-Za-z0-9_-]{22}")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is there; times are Unix seconds."""

    id: str
    data: bytes
    created_s: float
    expires_s: float


class Uploads:
    """The uploads below `path`: of all owners together at most `limit_bytes`, the oldest go first."""

    def __init__(
        self,
        path: Path,
        *,
        lifetime_s: float,
        limit_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._lifetime_s = lifetime_s
        self._limit_bytes = limit_bytes
        self._clock = clock
        path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def keep(self, owner: str, data: bytes) -> Upload:
        """Write a file; it is on the disk when this returns. Raises `OSError`."""
        folder, id = self._folder_of(owner), secrets.token_urlsafe(16)
        folder.write(id, data)
        folder.sync()
        self.sweep()
        created_s = folder.written_s(id)
        return Upload(id, data, created_s, created_s + self._lifetime_s)

    def read(self, owner: str, id: str) -> Upload | None:
        """Return a file; None for one that is somebody else's, never was, or has expired."""
        try:
            created_s = self._written_s(owner, id)
            return Upload(id, self._folder_of(owner).read(id), created_s, created_s + self._lifetime_s)
        except FileNotFoundError:
            return None

    def drop(self, owner: str, id: str) -> bool:
        """Remove a file; False if there is none."""
        try:
            self._written_s(owner, id)
        except FileNotFoundError:
            return False
        self._folder_of(owner).drop([id])
        return True

    def sweep(self) -> None:
        """Remove what has expired, and the oldest beyond the bound."""
        oldest_s = self._clock() - self._lifetime_s
        folders = [Folder(each) for each in self._path.iterdir() if each.is_dir()]
        found = [(about, folder, name) for folder in folders for name, about in folder.listed()]
        excess_bytes = sum(about.st_size for about, *_ in found) - self._limit_bytes
        for about, folder, name in sorted(found, key=lambda each: each[0].st_mtime):
            if about.st_mtime > oldest_s and excess_bytes <= 0:
                return
            folder.drop([name])
            excess_bytes -= about.st_size

    def _written_s(self, owner: str, id: str) -> float:
        """Return when a file was written, in Unix seconds; raises `FileNotFoundError`, also if it expired."""
        if not ID.fullmatch(id):
            raise FileNotFoundError(id)
        written_s = self._folder_of(owner).written_s(id)
        if written_s + self._lifetime_s <= self._clock():
            raise FileNotFoundError(id)
        return written_s

    def _folder_of(self, owner: str) -> Folder:
        return Folder(self._path / hashlib.sha256(owner.encode()).hexdigest()[:32])
