"""The adapters on this worker's device, by the digests of their files.

They are loaded by the thread that reads messages, beside the steps: what is submitted after a load finds it.
Over the bound a new one is refused and none is dropped for it, so that what is served stays served.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from weakref import WeakSet

import structlog
import torch

from model.checkpoint import CheckpointError
from model.lora import Adapter, Scaled
from server.errors import GenerationFailed
from server.generation import Adapter as Asked
from server.generation import AdapterInfo
from server.protocol import (
    AdapterFile,
    AdapterLoaded,
    AdapterRefused,
    DropAdapter,
    Failed,
    LoadAdapter,
    Submit,
    ToFront,
    ToWorker,
)

MAX_LOADED: Final = 100

Load = Callable[[Path, int], Adapter]  # of a file within so many bytes; raises `CheckpointError`

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Adapters:
    """At most `MAX_LOADED` adapters, with those that pictures in hand still use of at most `limit_bytes`."""

    load: Load
    limit_bytes: int
    _loaded: dict[str, Adapter] = field(default_factory=dict)
    _there: WeakSet[Adapter] = field(default_factory=WeakSet)

    def add(self, file: AdapterFile) -> AdapterInfo:
        """Load a file; raises `CheckpointError`."""
        path = Path(file.path)
        if len(self._loaded) >= MAX_LOADED:
            raise CheckpointError(f"{path}: {MAX_LOADED} adapters are loaded, which is the limit")
        taken = sum(adapter.size_bytes for adapter in self._there)
        adapter = self.load(path, self.limit_bytes - taken)
        self._loaded[adapter.digest] = adapter
        self._there.add(adapter)
        log.info("adapter_loaded", adapter=file.name, mib=adapter.size_bytes >> 20)
        return AdapterInfo(name=file.name, digest=adapter.digest, size_bytes=adapter.size_bytes)

    def answer(self, message: ToWorker) -> ToFront | None:
        """Do what a message says of adapters, and return what there is to say to it at once."""
        match message:
            case LoadAdapter(file=file):
                return self._try_to_add(file)
            case DropAdapter(digest=digest):
                self._loaded.pop(digest, None)
            case Submit(image=image) if missing := self._missing(image.adapters):
                reason = f"the adapter {missing.name!r} was removed or replaced meanwhile"
                return Failed(id=image.id, code=GenerationFailed.code, message=reason)
        return None

    def find(self, asked: Sequence[Asked]) -> tuple[Scaled, ...]:
        """Return what a picture asks for; `answer` has looked whether it is there."""
        return tuple(Scaled(self._loaded[each.digest], each.scale) for each in asked)

    def _try_to_add(self, file: AdapterFile) -> AdapterLoaded | AdapterRefused:
        try:
            return AdapterLoaded(adapter=self.add(file))
        except CheckpointError as error:
            reason = str(error).removeprefix(f"{file.path}: ")
        except torch.OutOfMemoryError:
            reason = "the device has too little memory for it"
        except (MemoryError, OSError):
            reason = "the file cannot be read now"
        log.warning("adapter_refused", adapter=file.name, reason=reason)
        return AdapterRefused(name=file.name, reason=reason)

    def _missing(self, asked: Sequence[Asked]) -> Asked | None:
        return next((each for each in asked if each.digest not in self._loaded), None)
