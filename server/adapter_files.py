"""The files of the adapters that are served, by name: those of the settings, and those that were put since.

What is put lies in a folder of the data directory and is there again at the next start. An upload has a name
of its own until it is whole and a worker has taken it.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from server.errors import StorageUnavailable
from server.generation import ADAPTER_NAME, ADAPTER_SUFFIX
from server.protocol import AdapterFile

UPLOAD_PREFIX: Final = ".upload-"  # which is no name of an adapter

log = structlog.get_logger(__name__)


class AdapterFiles:
    """`given` are the files of the settings, whose names nothing that is put may have."""

    def __init__(self, folder: Path, given: Mapping[str, Path]) -> None:
        self._folder = folder
        self._given = dict(given)
        self._put = {
            path.name.removesuffix(ADAPTER_SUFFIX): path
            for path in sorted(folder.glob(f"*{ADAPTER_SUFFIX}"))
            if ADAPTER_NAME.fullmatch(path.name.removesuffix(ADAPTER_SUFFIX))
        }
        for name in self._put.keys() & self._given.keys():
            log.warning("adapter_hidden", adapter=name, by="--lora")

    def all(self) -> tuple[AdapterFile, ...]:
        """Return every file that is served, if the model takes it; those of the settings are required."""
        return tuple(
            AdapterFile(name=name, path=str(path), required=name in self._given)
            for name, path in (self._put | self._given).items()
        )

    def is_given(self, name: str) -> bool:
        """Whether the settings have this name: then it stays as it is."""
        return name in self._given

    def is_put(self, name: str) -> bool:
        """Whether a file was put under this name, whether the workers took it at the start or not."""
        return name in self._put

    def clear_uploads(self) -> None:
        """Remove what an earlier process did not finish."""
        for path in self._folder.glob(f"{UPLOAD_PREFIX}*"):
            path.unlink(missing_ok=True)

    def begin(self) -> Path:
        """Return an empty file to write an upload to; raises `StorageUnavailable`."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=UPLOAD_PREFIX, delete=False) as file:
                return Path(file.name)
        except OSError as error:
            raise _unavailable(error) from None

    def keep(self, upload: Path, name: str) -> Path:
        """Give a whole upload its name, in place of what had it; raises `StorageUnavailable`."""
        path = self._folder / f"{name}{ADAPTER_SUFFIX}"
        try:
            upload.replace(path)
        except OSError as error:
            raise _unavailable(error) from None
        self._put[name] = path
        return path

    def remove(self, name: str) -> None:
        """Remove a file that was put; raises `StorageUnavailable`."""
        try:
            self._put[name].unlink(missing_ok=True)
        except OSError as error:
            raise _unavailable(error) from None
        del self._put[name]


def _unavailable(error: OSError) -> StorageUnavailable:
    return StorageUnavailable(f"the disk does not take the adapter: {error.strerror}")
