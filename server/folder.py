"""A folder whose files are whole or not there: written under a temporary name, brought to the disk, renamed.

Beneath the pictures of jobs, what jobs start from, and what clients upload. All of it blocks: the event loop
calls it in threads.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

TEMPORARY: Final = ".part"


class Folder:
    """The files in `path`, which is made if it is not there; names are the caller's, and checked by it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def clear(self) -> None:
        """Remove what was half-written by a process that was killed."""
        for left in self._path.glob(f"*{TEMPORARY}"):
            left.unlink()

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole. Raises `OSError`, and then leaves none."""
        temporary = self._path / f"{name}{TEMPORARY}"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def sync(self) -> None:
        """Bring the names of what was written to the disk: only now are the files there for certain."""
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, name: str) -> bytes:
        """Return what is in a file; raises `FileNotFoundError`."""
        return (self._path / name).read_bytes()

    def written_s(self, name: str) -> float:
        """Return when a file was written, in Unix seconds; raises `FileNotFoundError`."""
        return (self._path / name).stat().st_mtime

    def drop(self, names: Iterable[str]) -> None:
        """Remove files; those that are gone already are no fault."""
        for name in names:
            (self._path / name).unlink(missing_ok=True)

    def listed(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the names that there are and what the file system knows of them."""
        for path in self._path.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was renamed or dropped meanwhile
                yield path.name, path.stat()
