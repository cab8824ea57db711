"""The picture that a request starts from, in the worker: its bytes as arrays, and what is kept put back.

The loop checks it when a request comes in, the stages hand it to the model, and an encoder thread blends it
into what the model made.
"""

import numpy as np
import numpy.typing as npt

from model.pipeline import Pixels
from model.source import Source
from server.errors import GenerationFailed
from server.generation import MIN_STRENGTH, ImageRequest


def check_source(request: ImageRequest) -> None:
    """Raise `GenerationFailed` unless the bytes are those of pictures of the request's size."""
    if (source := request.source) is None:
        return
    size, pixels = f"{request.width}x{request.height}", request.width * request.height
    for name, data, length in (
        ("pixels", source.pixels, 3 * pixels),
        ("mask", source.mask, pixels),
        ("blend", source.blend, pixels),
    ):
        if data is not None and len(data) != length:
            raise GenerationFailed(
                f"source {name}: {len(data)} bytes; allowed for a picture of {size}: {length}"
            )
    if not MIN_STRENGTH <= source.strength <= 1:
        raise GenerationFailed(f"source strength: {source.strength:g}; allowed: {MIN_STRENGTH:g} to 1")


def source_of(request: ImageRequest) -> Source | None:
    """Return what the model starts from, without a copy of the bytes."""
    if (source := request.source) is None:
        return None
    return Source(
        pixels=_pixels(source.pixels, request),
        strength=source.strength,
        mask=None if source.mask is None else _greys(source.mask, request),
    )


def blended(made: Pixels, request: ImageRequest) -> Pixels:
    """Return `made` [height, width, 3] with the source's pixels where they are kept.

    `(blend * made + (255 - blend) * source) / 255`, rounded to the nearest: what is kept is the source's to
    the bit, and there are no ties, since 255 is odd.
    """
    if (source := request.source) is None or source.blend is None:
        return made
    share = _greys(source.blend, request)[:, :, None].astype(np.uint16)
    mixed = share * made + (255 - share) * _pixels(source.pixels, request)  # at most 255 * 255
    return ((mixed + 127) // 255).astype(np.uint8)


def _pixels(data: bytes, request: ImageRequest) -> Pixels:
    return np.frombuffer(data, np.uint8).reshape(request.height, request.width, 3)


def _greys(data: bytes, request: ImageRequest) -> npt.NDArray[np.uint8]:
    return np.frombuffer(data, np.uint8).reshape(request.height, request.width)
