"""From pictures to what the model starts from: pixels of the size that is made, a mask, and a blend.

Resizing and thresholds are those of diffusers' VaeImageProcessor, so that a request gives its picture.
"""

from functools import reduce
from typing import Final

from PIL import Image, ImageChops, ImageFilter

from server.decoder.files import Unusable, on_white, open_picture
from server.decoding import Decode, Decoded, Fit, Painted
from server.geometry import Canvas, Size, contained, covering, extended, seam, size_for

THRESHOLD: Final = 128  # 0.5 of 255, from which on a mask counts
CLEAR_RULE: Final = "a picture that is transparent where the other one is to be drawn anew"


def decode(asked: Decode, *, max_pixels: int) -> Decoded:
    """Return what a `generation.Source` is made of; raises `Unusable`, `UnusableMask` or `MemoryError`."""
    image = open_picture(asked.image, max_pixels=max_pixels)
    mask = _mask_of(asked, image, max_pixels=max_pixels)
    own = Size(*image.size)
    if asked.borders is not None:
        canvas = extended(own, asked.borders)
        size, fit = canvas.inner, Fit.STRETCH
    else:
        canvas = None
        size, fit = size_for(own, width=asked.width, height=asked.height), asked.fit
    painted = None
    if mask is not None:
        painted = _drawn_anew(resized(mask, size, fit), asked.painted if asked.mask else Painted.CLEAR)
    if canvas is not None:
        return _extended(asked, on_white(image), painted, canvas)
    if asked.mask is None and painted is not None and not painted.getbbox():
        painted = None  # its transparency was none worth the name
    blend = None if painted is None else _softened(painted, asked)
    return _decoded(resized(on_white(image), size, fit), painted, blend)


class UnusableMask(Unusable):
    """The same of a mask."""

    about = "mask"


def resized(image: Image.Image, size: Size, fit: Fit = Fit.STRETCH) -> Image.Image:
    """Return a picture in another size."""
    if image.size == size:
        return image
    own = Size(*image.size)
    match fit:
        case Fit.STRETCH:
            return image.resize(size, Image.Resampling.LANCZOS)
        case Fit.CROP:
            return image.resize(size, Image.Resampling.LANCZOS, box=covering(own, size))
        case Fit.FILL:
            return surrounded(image, contained(own, size))


def surrounded(image: Image.Image, canvas: Canvas) -> Image.Image:
    """Lay a picture onto a canvas; around it are its own edges, drawn out and blurred.

    The new area is seen by the model, which does better with colours that go on than with an empty one.
    """
    inner = image.resize(canvas.inner, Image.Resampling.LANCZOS) if image.size != canvas.inner else image
    whole = Image.new(image.mode, canvas.size)
    width, height = canvas.inner
    left, right, top, bottom = canvas.borders
    columns = ((0, left, 0, 1), (left, width, 0, width), (left + width, right, width - 1, width))
    rows = ((0, top, 0, 1), (top, height, 0, height), (top + height, bottom, height - 1, height))
    for x, across, x0, x1 in columns:
        for y, down, y0, y1 in rows:
            if across and down:
                whole.paste(inner.crop((x0, y0, x1, y1)).resize((across, down)), (x, y))
    whole = whole.filter(ImageFilter.GaussianBlur(max(canvas.borders) / 8))
    whole.paste(inner, (canvas.left, canvas.top))
    return whole


def _mask_of(asked: Decode, image: Image.Image, *, max_pixels: int) -> Image.Image | None:
    """Return the mask as it came, or the picture's own transparency."""
    if asked.mask is None:
        return image if asked.clear_is_mask and image.mode == "RGBA" else None
    try:
        mask = open_picture(asked.mask, max_pixels=max_pixels)
    except Unusable as unusable:
        raise UnusableMask(unusable.found, unusable.allowed) from None
    if asked.painted is Painted.CLEAR and mask.mode != "RGBA":
        raise UnusableMask("a picture without transparency", CLEAR_RULE)
    return mask


def _drawn_anew(mask: Image.Image, painted: Painted) -> Image.Image:
    """Return 255 where a mask says that its place is drawn anew, else 0; what is transparent says nothing."""
    if painted is Painted.CLEAR:
        return mask.getchannel("A").point(lambda value: 0 if value >= THRESHOLD else 255)
    light = mask.convert("RGB").convert("L")
    said = light.point(lambda value: 255 if (value >= THRESHOLD) == (painted is Painted.LIGHT) else 0)
    if mask.mode != "RGBA":
        return said
    seen = mask.getchannel("A").point(lambda value: 255 if value >= THRESHOLD else 0)
    return ImageChops.darker(said, seen)


def _softened(mask: Image.Image, asked: Decode) -> Image.Image | None:
    """Return how much of the model is in each pixel of the answer: all in the mask, less around its edge."""
    if not asked.preserve:
        return None
    return mask.filter(ImageFilter.GaussianBlur(asked.blur)) if asked.blur else mask


def _extended(asked: Decode, picture: Image.Image, inside: Image.Image | None, canvas: Canvas) -> Decoded:
    """Add the borders: they are drawn anew with a seam of the picture, and so is what is painted `inside`."""
    blend = Image.new("L", canvas.size, 255)
    blend.paste(reduce(ImageChops.lighter, _ramps(canvas)), (canvas.left, canvas.top))
    painted = blend.point(lambda value: 255 if value else 0)
    if inside is not None:
        drawn = Image.new("L", canvas.size)
        drawn.paste(inside, (canvas.left, canvas.top))
        painted = ImageChops.lighter(painted, drawn)
        blend = ImageChops.lighter(blend, _softened(drawn, asked) or drawn)
    return _decoded(surrounded(picture, canvas), painted, blend if asked.preserve else None)


def _ramps(canvas: Canvas) -> list[Image.Image]:
    """Return, for each side with a border, how much of the model is in the picture: less with each pixel."""
    width, height = canvas.inner
    left, right, top, bottom = (border > 0 for border in canvas.borders)
    across, down = _ramp(width), _ramp(height)
    ramps = [Image.new("L", canvas.inner)]
    if left:
        ramps.append(Image.frombytes("L", (width, 1), across).resize(canvas.inner))
    if right:
        ramps.append(Image.frombytes("L", (width, 1), across[::-1]).resize(canvas.inner))
    if top:
        ramps.append(Image.frombytes("L", (1, height), down).resize(canvas.inner))
    if bottom:
        ramps.append(Image.frombytes("L", (1, height), down[::-1]).resize(canvas.inner))
    return ramps


def _ramp(length: int) -> bytes:
    """Return 255ths that fall from nearly all at an edge to nothing beyond its seam."""
    over = seam(length)
    return bytes(round(255 * (1 - (at + 0.5) / over)) if at < over else 0 for at in range(length))


def _decoded(picture: Image.Image, mask: Image.Image | None, blend: Image.Image | None) -> Decoded:
    return Decoded(
        width=picture.width,
        height=picture.height,
        pixels=picture.tobytes(),
        mask=None if mask is None else mask.tobytes(),
        blend=None if blend is None else blend.tobytes(),
    )
