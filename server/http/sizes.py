"""How dialects name the size of a picture: sides in pixels, or an aspect ratio and megapixels."""

from typing import Annotated, Final

from pydantic import Field

from server.generation import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE

SIDE_RULE: Final = f"a multiple of {SIDE_MULTIPLE} from {MIN_SIDE} to {MAX_SIDE} (pixels)"
ASPECT_RATIOS: Final = {  # width and height at one megapixel, as black-forest-labs/flux-schnell has them
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "21:9": (1536, 640),
    "3:2": (1216, 832),
    "2:3": (832, 1216),
    "4:5": (896, 1088),
    "5:4": (1088, 896),
    "3:4": (896, 1152),
    "4:3": (1152, 896),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}

Side = Annotated[
    int | None, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=SIDE_MULTIPLE, description=SIDE_RULE)
]


def size_of(aspect_ratio: str, megapixels: str) -> tuple[int, int]:
    """Return width and height of a ratio at "1" or "0.25" megapixels; a quarter has half the sides."""
    width, height = ASPECT_RATIOS[aspect_ratio]
    return (width // 2, height // 2) if megapixels == "0.25" else (width, height)


def nearest_size(width: float, height: float) -> tuple[int, int]:
    """Return the size that is made for one that may be any.

    What is too large is made smaller in proportion; then each side goes to the nearest that there is.
    """
    scale = min(1.0, MAX_SIDE / max(width, height))
    return _nearest_side(width * scale), _nearest_side(height * scale)


def _nearest_side(pixels: float) -> int:
    return min(MAX_SIDE, max(MIN_SIDE, round(pixels / SIDE_MULTIPLE) * SIDE_MULTIPLE))
