"""From a file of a stranger to an upright picture in sRGB, or a sentence that says why not.

PNG, JPEG and WebP, told by their first bytes; of an animation the first frame. Size and pixels are looked at
before anything is unpacked. What is beside the picture in its file is read for orientation and colours, and
left behind.
"""

import binascii
import io
import re
from typing import Final, Literal

from PIL import (
    Image,
    ImageCms,
    JpegImagePlugin,
    PngImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from server.decoding import Sent

SIGNATURES: Final = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WEBP"}
NAMES: Final = {"PNG": "PNG", "JPEG": "JPEG", "MPO": "JPEG", "WEBP": "WebP"}
FORMAT_RULE: Final = "a PNG, JPEG or WebP picture"
MAX_SIDE: Final = 32768
# Cameras write one scan and the web some ten; 300 kB of thousands keep a decoder busy for minutes.
MAX_SCANS: Final = 100
SEGMENT: Final = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")  # what else follows 0xFF has no length
SCAN: Final = b"\xda"
END: Final = b"\xd9"
ORIENTATION: Final = 0x0112
UPRIGHT: Final = {  # the values of EXIF's orientation, and what undoes them
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
COLOUR_SPACES: Final = {"RGB ": ("RGB", "RGBA"), "GRAY": ("L",), "CMYK": ("CMYK",)}
WHITE: Final = (255, 255, 255)
SIXTEEN_BITS: Final = 1 / 257

assert JpegImagePlugin, PngImagePlugin
assert WebPImagePlugin  # each is known to Pillow once it is imported


class Unusable(Exception):
    """A file is none that can be used: it is `found`, and `allowed` would be something else."""

    about: Literal["image", "mask"] = "image"

    def __init__(self, found: str, allowed: str = FORMAT_RULE) -> None:
        super().__init__(found)
        self.found = found
        self.allowed = allowed


def open_picture(sent: Sent, *, max_pixels: int) -> Image.Image:
    """Return the picture in a file, upright and in sRGB: RGB, or RGBA where something of it is transparent.

    Raises `Unusable`, or `MemoryError`.
    """
    data = _from_base64(bytes(sent.data)) if sent.base64 else bytes(sent.data)
    kind = next((name for signature, name in SIGNATURES.items() if data.startswith(signature)), None)
    if not data:
        raise Unusable("empty")
    if kind is None:
        raise Unusable("a file of another kind")
    if kind == "JPEG" and (scans := _scans(data)) > MAX_SCANS:
        raise Unusable(f"a JPEG picture in {scans} scans", f"at most {MAX_SCANS} scans")
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own bound, which is another one
    try:
        with Image.open(io.BytesIO(data), formats=(kind,)) as image:
            _check_size(image, max_pixels=max_pixels)
            image.load()
            return _upright(_in_srgb(_plain(image), image.info.get("icc_profile")), _orientation(image))
    except (Unusable, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - whatever Pillow makes of bytes that somebody made up
        raise Unusable(f"a {NAMES[kind]} file that cannot be decoded: {_reason(error)}") from None


def on_white(image: Image.Image) -> Image.Image:
    """Return a picture as it looks on white paper, in RGB."""
    if image.mode != "RGBA":
        return image
    paper = Image.new("RGB", image.size, WHITE)
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _from_base64(text: bytes) -> bytes:
    """Decode base64 of either alphabet, with or without line breaks and padding."""
    text = text.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n")
    try:
        return binascii.a2b_base64(text + b"=" * (-len(text) % 4), strict_mode=True)
    except binascii.Error:
        raise Unusable(f"text of {len(text)} characters that is not base64") from None


def _scans(jpeg: bytes) -> int:
    """Count how often the decoder would go over all pixels; what is inside of segments or follows is none."""
    at, scans = 2, 0
    while (segment := SEGMENT.search(jpeg, at)) is not None and segment[1] != END:
        scans += segment[1] == SCAN
        at = segment.end() + max(2, int.from_bytes(jpeg[segment.end() : segment.end() + 2]))
    return scans


def _check_size(image: Image.Image, *, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        kind = NAMES[image.format or ""]
        limit = f"at most {max_pixels / 1e6:g} megapixels, and sides of at most {MAX_SIDE}"
        raise Unusable(f"a {kind} picture of {width}x{height} pixels", limit)


def _plain(image: Image.Image) -> Image.Image:
    """Return a picture of eight bits a channel without a palette: L, RGB, RGBA or CMYK."""
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value * SIXTEEN_BITS).convert("L")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return a picture in sRGB; a profile that does not fit or makes no sense is passed over."""
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        known = image.mode in COLOUR_SPACES.get(theirs.profile.xcolor_space, ())
        if known and "sRGB" not in (theirs.profile.profile_description or ""):
            ours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
            converted = ImageCms.profileToProfile(image, theirs, ours, outputMode=mode)
            assert converted is not None, "it is not done in place"
            return converted
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        pass
    return image if image.mode == mode else image.convert(mode)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # noqa: BLE001 - metadata that somebody made up is no reason to refuse a picture
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    undone_by = UPRIGHT.get(orientation)
    return image if undone_by is None else image.transpose(undone_by)


def _reason(error: Exception) -> str:
    """Say what Pillow says, without the bytes that it may quote and the address of what it read."""
    if isinstance(error, UnidentifiedImageError):
        return "it begins like one and goes on like none"
    return str(error).partition("\n")[0][:80].encode("ascii", "replace").decode() or type(error).__name__
