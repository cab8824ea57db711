"""Finished pictures as files under names that cannot be guessed, until they expire.

A name is all that is needed to read a picture, so it is 128 random bits. It expires `lifetime_s` after it was
written. All of it blocks: the event loop calls it in threads.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from server.folder import Folder
from server.generation import Image
from server.job import StoredImage

EXTENSIONS: Final = {"image/png": "png", "image/jpeg": "jpg", "image/webp": "webp"}
TYPES: Final = {extension: content_type for content_type, extension in EXTENSIONS.items()}
NAME: Final = re.compile(r"[A-Za-z0-9_-]{22}\.(png|jpg|webp)")


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture that is there; `left_s` is how long it will be."""

    data: bytes
    content_type: str
    left_s: float


class PictureFiles:
    """The pictures in `folder`. `clock` is Unix time, as the file system's is."""

    def __init__(self, folder: Path, *, lifetime_s: float, clock: Callable[[], float] = time.time) -> None:
        self._folder = Folder(folder)
        self._folder.clear()
        self._lifetime_s = lifetime_s
        self._clock = clock

    def keep(self, images: Iterable[Image]) -> tuple[StoredImage, ...]:
        """Write pictures; they are on the disk when this returns. Raises `OSError`, and then keeps none."""
        kept: list[StoredImage] = []
        try:
            for image in images:
                kept.append(self._write(image))
            self._folder.sync()
        except OSError:
            self.drop(each.name for each in kept)
            raise
        return tuple(kept)

    def read(self, name: str) -> PictureFile | None:
        """Return the picture of this name; None for one that is no name, never was, or has expired."""
        if not NAME.fullmatch(name):
            return None
        try:
            left_s = self._folder.written_s(name) + self._lifetime_s - self._clock()
            content_type = TYPES[name.rpartition(".")[2]]
            return PictureFile(self._folder.read(name), content_type, left_s) if left_s > 0 else None
        except FileNotFoundError:
            return None

    def drop(self, names: Iterable[str]) -> None:
        """Remove pictures; those that are gone already are no fault."""
        self._folder.drop(names)

    def sweep(self) -> None:
        """Remove what has expired, also the pictures of jobs that a killed process never finished."""
        oldest_s = self._clock() - self._lifetime_s
        self._folder.drop(name for name, about in self._folder.listed() if about.st_mtime <= oldest_s)

    def _write(self, image: Image) -> StoredImage:
        name = f"{secrets.token_urlsafe(16)}.{EXTENSIONS[image.content_type]}"
        self._folder.write(name, image.data)
        return StoredImage(
            name=name,
            content_type=image.content_type,
            width=image.width,
            height=image.height,
            seed=image.seed,
            size_bytes=len(image.data),
        )
