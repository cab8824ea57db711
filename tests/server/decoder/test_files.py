"""Files of strangers: every honest way to write a picture is read, everything else refused by name."""

import base64
import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image, ImageCms, ImageOps

from server.decoder.files import Unusable, on_white, open_picture
from server.decoding import Sent
from tests.server.decoder.pictures import bomb, chunk, file_of, gradient, png, text_bomb

MAX_PIXELS = 1_000_000


def read(data: bytes, *, as_base64: bool = False) -> Image.Image:
    return open_picture(Sent(data=memoryview(data), base64=as_base64), max_pixels=MAX_PIXELS)


def likeness(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two pictures, of 255."""
    assert (one.mode, one.size) == (other.mode, other.size)
    mine, theirs = one.tobytes(), other.tobytes()
    return sum(abs(a - b) for a, b in zip(mine, theirs, strict=True)) / len(mine)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_each_format_is_known_by_its_content(kind: str) -> None:
    picture = gradient(64, 48)
    assert likeness(read(file_of(picture, kind, **({} if kind == "PNG" else {"quality": 95}))), picture) < 3


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pictures_of_every_mode_become_plain(mode: str) -> None:
    grey = gradient(64, 48).convert("L")
    if mode == "I;16":
        wide = b"".join(struct.pack("<H", value * 257) for value in grey.tobytes())
        data = file_of(Image.frombytes(mode, grey.size, wide))
    else:
        data = file_of(grey.convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    expected = grey.convert("1").convert("RGB") if mode == "1" else grey.convert("RGB")
    assert likeness(on_white(read(data)), expected) < 1.5


def test_sixteen_bits_of_three_channels_are_read() -> None:
    row = b"\0" + struct.pack(">HHH", 0xFFFF, 0x8080, 0) * 2
    picture = read(png(2, 2, chunk(b"IDAT", zlib.compress(row * 2)), depth=16, colour=2))
    assert picture.getpixel((1, 1)) == (255, 128, 0)


def test_what_is_transparent_is_kept_until_it_is_laid_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    picture = read(file_of(clear))
    assert picture.mode == "RGBA"
    assert (on_white(picture).getpixel((0, 0)), on_white(picture).getpixel((1, 1))) == (
        (255, 0, 0),
        (255,) * 3,
    )
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((0, 0), 1)
    assert on_white(read(file_of(palette, transparency=0))).getpixel((0, 0)) == (40, 50, 60)
    assert on_white(read(file_of(palette, transparency=0))).getpixel((1, 1)) == (255,) * 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(gradient(64, 48), exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    assert read(data).tobytes() == upright.tobytes()


def test_a_picture_in_other_colours_comes_in_srgb() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    picture = gradient(32, 32)
    assert read(file_of(picture, icc_profile=lab.tobytes())).tobytes() == picture.tobytes()
    swapped = _swapped(lab.tobytes())
    shown = read(file_of(picture, icc_profile=swapped))
    assert likeness(shown, picture) > 20
    assert read(file_of(picture, icc_profile=b"no profile")).tobytes() == picture.tobytes()


def _swapped(profile: bytes) -> bytes:
    """Return a profile in which red and blue have each other's colours."""
    assert profile.count(b"rXYZ") == profile.count(b"bXYZ") == 1
    other = profile.replace(b"rXYZ", b"?XYZ").replace(b"bXYZ", b"rXYZ").replace(b"?XYZ", b"bXYZ")
    return other.replace(b"s\0R\0G\0B", b"o\0t\0h\0r").replace(b"sRGB", b"othr")


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue")]
    for kind in ("PNG", "WEBP"):
        data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert read(data).convert("RGB").getpixel((5, 5)) == (255, 0, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text,
        lambda text: text.rstrip(b"="),
        lambda text: b"\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)),
        lambda text: text.replace(b"+", b"-").replace(b"/", b"_"),
    ],
)
def test_base64_is_read_as_clients_write_it(change: Any) -> None:
    data = file_of(gradient(64, 48))
    assert read(change(base64.b64encode(data)), as_base64=True).tobytes() == gradient(64, 48).tobytes()


HOSTILE = {
    "nothing": (b"", "empty"),
    "text": (b"<svg/>", "a file of another kind"),
    "gif": (b"GIF89a" + b"\0" * 100, "a file of another kind"),
    "tiff": (b"II*\0" + b"\0" * 100, "a file of another kind"),
    "sound": (b"RIFF\x10\0\0\0WAVEfmt " + b"\0" * 100, "a WebP file that cannot be decoded"),
    "a head alone": (b"\x89PNG\r\n\x1a\n", "a PNG file that cannot be decoded"),
    "no size": (png(0, 0), "a PNG file that cannot be decoded"),
    "cut": (file_of(gradient())[:-200], "a PNG file that cannot be decoded"),
    "cut jpeg": (file_of(gradient(), "JPEG")[:900], "a JPEG file that cannot be decoded"),
    "cut webp": (file_of(gradient(), "WEBP")[:300], "a WebP file that cannot be decoded"),
    "a wrong sum": (file_of(gradient()).replace(b"IDAT", b"IDAT\1", 1), "a PNG file that cannot be decoded"),
    "large": (bomb(14_000), "a PNG picture of 14000x14000 pixels"),
    "said to be large": (png(2**31 - 1, 2**31 - 1), "a PNG"),
    "long": (png(40_000, 2), "a PNG picture of 40000x2 pixels"),
    "a bomb of text": (text_bomb(), "a PNG file that cannot be decoded"),
    "a bomb of colours": (text_bomb(b"iCCP"), "a PNG file that cannot be decoded"),
}


def test_a_picture_in_more_scans_than_anybody_writes_is_refused() -> None:
    data = file_of(gradient(), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    some, many = (data[:-2] + last * times + data[-2:] for times in (20, 200))
    assert read(some).size == gradient().size
    with pytest.raises(Unusable, match=r"^a JPEG picture in 2\d\d scans$"):
        read(many)


def test_what_looks_like_scans_beside_the_picture_is_none() -> None:
    marks = b"\xff\xda" * 1000
    data = file_of(gradient(), "JPEG", comment=marks) + marks  # phones put a film behind it
    assert read(data).size == gradient().size


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_picture_is_refused_and_named(name: str) -> None:
    data, found = HOSTILE[name]
    with pytest.raises(Unusable) as caught:
        read(data)
    assert caught.value.found.startswith(found)
    assert len(caught.value.found) < 150
    assert " object at 0x" not in caught.value.found
    assert caught.value.allowed


def test_base64_that_is_none_is_refused() -> None:
    for text in (b"@@@@", b"abc=def", b"a"):
        with pytest.raises(Unusable, match="not base64"):
            read(text, as_base64=True)
