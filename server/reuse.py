"""Pictures that need no run of their own: those that are being made already, and those that are finished.

A picture depends on its request and the model alone, so equal keys are equal pictures, whoever asked first.
The engine looks here before it admits work; the HTTP edge uses the same keys as entity tags.
"""

import hashlib
from collections.abc import Iterable
from enum import Enum, auto

import msgspec

from server import __version__
from server.generation import Image, ImageRequest, ModelInfo, Priority
from server.lru import Lru
from server.metrics import Metrics
from server.roster import Pending


class Reuse(Enum):
    """What a request lets its pictures have to do with those of others.

    ALLOWED takes pictures that are finished or being made, and leaves its own to others. FRESH has its own
    made and leaves them. NEVER does neither.
    """

    ALLOWED = auto()
    FRESH = auto()
    NEVER = auto()


def picture_key(image: ImageRequest, model: ModelInfo) -> str:
    """Return a digest of all that decides the bytes of a picture, and of nothing that has no say in them.

    Without a pass for it the negative prompt has none, nor has guidance that is off, nor the quality of a
    format without loss, nor the pixels of a source that nobody looks at. Of an adapter its file has a say,
    and not its name.
    """
    negative = model.uses_negative(image.guidance_scale)
    decides = msgspec.structs.replace(
        image,
        id="",
        negative_prompt=image.negative_prompt if negative else "",
        guidance_scale=image.guidance_scale if negative or model.guidance_embed else 0.0,
        quality=0 if image.image_format == "png" else image.quality,
        priority=Priority.NORMAL,
        deadline_s=None,
        key="",
        previews=(),
        source=None,
        adapters=tuple(msgspec.structs.replace(each, name="") for each in image.adapters),
    )
    text = msgspec.json.encode((decides, _source_key(image), model.decides, __version__))
    return hashlib.sha256(text).hexdigest()[:32]


def _source_key(image: ImageRequest) -> tuple[int, str, str | None, str | None] | None:
    """Return what decides of a source: the strength only by the steps that it leaves."""
    if image.source is None:
        return None
    pixels, mask, blend = image.source.digests
    is_seen = image.encodes_source or blend is not None
    return image.run_steps, pixels if is_seen else "", mask, blend


class Gallery:
    """Finished pictures within a bound in bytes, and the runs that others may wait for, by their keys."""

    def __init__(self, limit_bytes: int, *, metrics: Metrics) -> None:
        self._finished: Lru[str, Image] = Lru(limit_bytes, size_of=lambda image: len(image.data))
        self._runs: dict[str, Pending] = {}
        self._metrics = metrics

    def find(self, key: str) -> Image | Pending | None:
        """Return the picture, or the run that makes it."""
        if image := self._finished.get(key):
            self._metrics.image_cache("hit")
            return image
        run = self._runs.get(key)
        if run is not None and not run.settled:
            self._metrics.image_cache("flight")
            return run
        self._metrics.image_cache("miss")
        return None

    def began(self, runs: Iterable[Pending]) -> None:
        """From now on others may wait for `runs`; of two with one key they wait for the newer."""
        self._runs.update((run.key, run) for run in runs if run.key is not None)

    def finished(self, run: Pending, image: Image) -> None:
        """Keep the picture that `run` made."""
        if run.key is not None:
            self._finished.put(run.key, image)
            self._metrics.image_cache_bytes(self._finished.size_bytes)

    def ended(self, run: Pending) -> None:
        """Nobody waits for `run` any more."""
        if run.key is not None and self._runs.get(run.key) is run:
            del self._runs[run.key]
