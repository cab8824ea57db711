"""Sizes of pictures: which ones can be made, and where a picture lies in one that is made from it.

Pure arithmetic on (width, height) in pixels, for the decoder and for the dialects that let a client ask for
any size. Nothing here knows pictures.
"""

from typing import Final, NamedTuple

from server.generation import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE

SEAM: Final = 32  # pixels of a kept edge over which a picture goes over into its new surroundings


class Size(NamedTuple):
    width: int
    height: int


class Borders(NamedTuple):
    """Pixels of new area on each side of a picture."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


class Canvas(NamedTuple):
    """A picture of `size` in which another one of `inner` lies with its corner at (`left`, `top`)."""

    size: Size
    inner: Size
    left: int
    top: int

    @property
    def borders(self) -> Borders:
        """What is around the inner picture."""
        return Borders(
            left=self.left,
            right=self.size.width - self.inner.width - self.left,
            top=self.top,
            bottom=self.size.height - self.inner.height - self.top,
        )


def can_be_made(size: Size) -> bool:
    """Return whether the model makes pictures of this size."""
    return all(MIN_SIDE <= side <= MAX_SIDE and side % SIDE_MULTIPLE == 0 for side in size)


def nearest_side(pixels: float) -> int:
    """Return the side nearest to this one that can be made."""
    return min(MAX_SIDE, max(MIN_SIDE, round(pixels / SIDE_MULTIPLE) * SIDE_MULTIPLE))


def fitted(width: int, height: int) -> Size:
    """Return the size in which a picture is made that has a size of its own.

    One that is too large or too small is scaled in proportion, then each side goes to the nearest that there
    is: the proportion is lost where one side is more than six times the other.
    """
    scale = min(1.0, MAX_SIDE / max(width, height))
    scale = max(scale, MIN_SIDE / min(width, height))
    return Size(nearest_side(width * scale), nearest_side(height * scale))


def size_for(own: Size, *, width: int | None, height: int | None) -> Size:
    """Return the size of what is made from a picture: as asked for, a side alone brings the other along."""
    if width is not None and height is not None:
        return Size(width, height)
    if width is not None:
        return Size(width, nearest_side(own.height * width / own.width))
    if height is not None:
        return Size(nearest_side(own.width * height / own.height), height)
    return fitted(*own)


def covering(own: Size, size: Size) -> tuple[float, float, float, float]:
    """Return the box (left, top, right, bottom) in the middle of a picture that is like `size`."""
    scale = min(own.width / size.width, own.height / size.height)
    left = max(0.0, own.width - size.width * scale) / 2  # a side that fits may be less by a rounding error
    top = max(0.0, own.height - size.height * scale) / 2
    return left, top, own.width - left, own.height - top


def contained(own: Size, size: Size) -> Canvas:
    """Lay a picture whole into the middle of `size`, as large as it can be."""
    scale = min(size.width / own.width, size.height / own.height)
    inner = Size(*(max(1, round(side * scale)) for side in own))
    return Canvas(size, inner, (size.width - inner.width) // 2, (size.height - inner.height) // 2)


def extended(own: Size, borders: Borders) -> Canvas:
    """Lay a picture into one that is larger by `borders`.

    Where that has no size that can be made, a border grows (the larger one of the two, right or bottom if
    they are equal, also where there was none): the picture keeps its pixels. Only what would be larger than
    can be made is scaled down, picture and borders in proportion.
    """
    across = own.width + borders.left + borders.right
    down = own.height + borders.top + borders.bottom
    scale = min(1.0, MAX_SIDE / max(across, down))
    width, inner_width, left = _extended(own.width, borders.left, borders.right, scale)
    height, inner_height, top = _extended(own.height, borders.top, borders.bottom, scale)
    return Canvas(Size(width, height), Size(inner_width, inner_height), left, top)


def _extended(own: int, before: int, after: int, scale: float) -> tuple[int, int, int]:
    """Return the whole length along one axis, the picture's part of it, and where that begins."""
    inner = max(1, round(own * scale))
    least = max(MIN_SIDE, inner + round((before + after) * scale))
    whole = min(MAX_SIDE, -(-least // SIDE_MULTIPLE) * SIDE_MULTIPLE)
    inner = min(inner, whole)
    if before > after:
        return whole, inner, max(0, whole - inner - round(after * scale))
    return whole, inner, min(whole - inner, round(before * scale))


def seam(inner: int) -> int:
    """Return over how many of its pixels a picture of this side goes over into a border."""
    return max(1, min(SEAM, inner // 4))
