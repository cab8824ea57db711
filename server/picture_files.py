"""Finished pictures as files under names that cannot be guessed, until they expire.

A name is all that is needed to read a picture, so it is 128 random bits. A file is written under a temporary
name, brought to the disk and renamed: one that can be named is whole. It expires `lifetime_s` after that.
All of it blocks: the event loop calls it in threads.
"""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.generation import Image
from server.job import StoredImage

EXTENSIONS: Final = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
TYPES: Final = {extension: content_type for content_type, extension in EXTENSIONS.items()}
NAME: Final = re.compile(r"[A-Za-z0-9_-]{22}\.(png|jpg|webp)")
TEMPORARY: Final = ".part"


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture that is there; `left_s` is how long it will be."""

    data: bytes
    content_type: str
    left_s: float


class PictureFiles:
    """The pictures in `folder`. `clock` is Unix time, as the file system's is."""

    def __init__(self, folder: Path, *, lifetime_s: float, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._lifetime_s = lifetime_s
        self._clock = clock
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in folder.glob(f"*{TEMPORARY}"):  # half-written by a process that was killed
            left.unlink()

    def keep(self, images: Iterable[Image]) -> tuple[StoredImage, ...]:
        """Write pictures; they are on the disk when this returns. Raises `OSError`, and then keeps none."""
        kept: list[StoredImage] = []
        try:
            for image in images:
                kept.append(self._write(image))
            self._sync_folder()
        except OSError:
            self.drop(each.name for each in kept)
            raise
        return tuple(kept)

    def read(self, name: str) -> PictureFile | None:
        """Return the picture of this name; None for one that is no name, never was, or has expired."""
        if not NAME.fullmatch(name):
            return None
        path = self._folder / name
        try:
            left_s = path.stat().st_mtime + self._lifetime_s - self._clock()
            return PictureFile(path.read_bytes(), TYPES[path.suffix[1:]], left_s) if left_s > 0 else None
        except FileNotFoundError:
            return None

    def drop(self, names: Iterable[str]) -> None:
        """Remove pictures; those that are gone already are no fault."""
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what has expired, also the pictures of jobs that a killed process never finished."""
        oldest_s = self._clock() - self._lifetime_s
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it was renamed or dropped meanwhile
                if path.stat().st_mtime <= oldest_s:
                    path.unlink()

    def _write(self, image: Image) -> StoredImage:
        name = f"{secrets.token_urlsafe(16)}.{EXTENSIONS[image.content_type]}"
        path, temporary = self._folder / name, self._folder / f"{name}{TEMPORARY}"
        try:
            with temporary.open("wb") as file:
                file.write(image.data)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return StoredImage(
            name=name,
            content_type=image.content_type,
            width=image.width,
            height=image.height,
            seed=image.seed,
            size_bytes=len(image.data),
        )

    def _sync_folder(self) -> None:
        """The names themselves are on the disk only after this."""
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
