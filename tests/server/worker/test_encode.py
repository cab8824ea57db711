"""Every format carries who made the picture, and nothing that it should not."""

import hashlib
import io
import struct
from dataclasses import replace
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from server.generation import Adapter, ImageFormat
from server.worker.encode import (
    EDITED_MEDIA,
    GENERATED_MEDIA,
    XMP_KEYWORD,
    Provenance,
    encode_image,
    xmp_packet,
)

PROVENANCE = Provenance(
    seed=42,
    width=48,
    height=32,
    steps=4,
    numerics="exact",
    quantize="none",
    model="tiny",
    digest="ab" * 32,
    version="0.1.0",
)
FORMATS = get_args(ImageFormat)


def encoded(image_format: ImageFormat, provenance: Provenance = PROVENANCE, quality: int = 90) -> bytes:
    ramp = np.linspace(0, 255, 32 * 48 * 3).astype(np.uint8).reshape(32, 48, 3)
    return encode_image(ramp, image_format=image_format, quality=quality, provenance=provenance)


def segments(data: bytes) -> list[tuple[int, bytes]]:
    """Parse the marker segments of a JPEG up to its pixels."""
    found, position = [], 2
    while (marker := data[position + 1]) != 0xDA:
        (length,) = struct.unpack_from(">H", data, position + 2)
        assert data[position] == 0xFF
        found.append((marker, data[position + 4 : position + 2 + length]))
        position += 2 + length
    return found


def xmp(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        packet = image.info.get("xmp") or image.info[XMP_KEYWORD]
        return packet.decode() if isinstance(packet, bytes) else packet


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_is_what_it_says(image_format: ImageFormat) -> None:
    with Image.open(io.BytesIO(encoded(image_format))) as image:
        assert image.format == image_format.upper()
        assert image.size == (48, 32)


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_is_marked_as_generated_media(image_format: ImageFormat) -> None:
    root = ElementTree.fromstring(xmp(encoded(image_format)))
    values = [value for element in root.iter() for value in element.attrib.values()]
    assert GENERATED_MEDIA in values


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_picture_made_from_another_is_marked_as_edited(image_format: ImageFormat) -> None:
    root = ElementTree.fromstring(xmp(encoded(image_format, replace(PROVENANCE, strength=0.6))))
    values = [value for element in root.iter() for value in element.attrib.values()]
    assert EDITED_MEDIA in values
    assert GENERATED_MEDIA not in values
    if image_format != "png":  # whose own chunks hold it
        assert "0.6" in values


def test_a_png_carries_what_made_it_and_no_prompt() -> None:
    with Image.open(io.BytesIO(encoded("png"))) as image:
        image.load()
        del image.text[XMP_KEYWORD]
        assert image.text == {
            "Software": "schnell-server 0.1.0",
            "seed": "42",
            "size": "48x32",
            "steps": "4",
            "numerics": "exact",
            "quantize": "none",
            "model": "tiny",
            "model_digest": "ab" * 32,
        }


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_prompt_is_written_on_request_only(image_format: ImageFormat) -> None:
    prompt = 'ein "Bär" 🐻 & <b> ]]>'
    with_prompt = encoded(image_format, replace(PROVENANCE, prompt=prompt))
    assert "Bär" in with_prompt.decode("utf-8", "ignore")
    assert "Bär" not in encoded(image_format).decode("utf-8", "ignore")


def test_any_prompt_survives_the_xml() -> None:
    prompt = "ein \"Bär\" 🐻 & <b> ]]> 'quoted'\r\n\tnew line"
    root = ElementTree.fromstring(xmp_packet({"prompt": prompt, "seed": '"<&'}, GENERATED_MEDIA))
    assert prompt in [element.text for element in root.iter()]


@pytest.mark.parametrize("text", ["a\ufffeb", "a\uffffb", "a\x01b", "a\ud800b"])
def test_characters_that_xml_has_no_word_for_are_replaced(text: str) -> None:
    root = ElementTree.fromstring(xmp_packet({"prompt": text, "model": text}, GENERATED_MEDIA))
    assert "a\ufffdb" in [element.text for element in root.iter()]
    assert "a\ufffdb" in [value for element in root.iter() for value in element.attrib.values()]


@pytest.mark.parametrize("prompt", ["a" * 32_000, "&" * 32_000, "🐻" * 32_000])
@pytest.mark.parametrize("image_format", FORMATS)
def test_the_longest_prompts_fit_into_every_format(image_format: ImageFormat, prompt: str) -> None:
    data = encoded(image_format, replace(PROVENANCE, prompt=prompt))
    root = ElementTree.fromstring(xmp(data))
    assert GENERATED_MEDIA in [value for element in root.iter() for value in element.attrib.values()]


def test_a_prompt_longer_than_a_jpeg_segment_is_put_together_from_its_extension() -> None:
    prompt = "🐻&" * 16_000
    data = encoded("jpeg", replace(PROVENANCE, prompt=prompt))
    signature = b"http://ns.adobe.com/xmp/extension/\0"
    parts = [body.removeprefix(signature) for _, body in segments(data) if body.startswith(signature)]
    assert len(parts) == 3
    whole = b"".join(part[40:] for part in parts)
    digest = hashlib.md5(whole).hexdigest().upper()
    offsets = [0, len(parts[0]) - 40, len(parts[0]) + len(parts[1]) - 80]
    assert [part[:40] for part in parts] == [
        digest.encode() + struct.pack(">II", len(whole), offset) for offset in offsets
    ]
    assert prompt in [element.text for element in ElementTree.fromstring(whole).iter()]
    assert f'xmpNote:HasExtendedXMP="{digest}"' in xmp(data)


def test_a_jpeg_holds_no_segment_but_its_own_and_one_packet() -> None:
    markers = [marker for marker, _ in segments(encoded("jpeg"))]
    assert [marker for marker in markers if 0xE0 <= marker <= 0xEF or marker == 0xFE] == [0xE0, 0xE1]


@pytest.mark.parametrize(("quality", "sampling"), [(89, (2, 2)), (90, (1, 1)), (100, (1, 1))])
def test_jpeg_keeps_all_colours_from_quality_90(quality: int, sampling: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(encoded("jpeg", quality=quality))) as image:
        assert image.layer[0][1:3] == sampling


@pytest.mark.parametrize("image_format", FORMATS)
def test_equal_input_gives_equal_files(image_format: ImageFormat) -> None:
    assert encoded(image_format) == encoded(image_format)


@pytest.mark.parametrize("image_format", FORMATS)
def test_arrays_of_another_kind_are_refused_in_every_format(image_format: ImageFormat) -> None:
    with pytest.raises(ValueError, match=r"pixels are uint8 \[4, 4\]"):
        encode_image(np.zeros((4, 4), np.uint8), image_format=image_format, quality=90, provenance=PROVENANCE)


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_quality_counts(image_format: ImageFormat) -> None:
    assert len(encoded(image_format, quality=10)) < len(encoded(image_format, quality=95))


def test_adapters_are_written_by_their_files_and_not_by_their_names() -> None:
    asked = (Adapter(name="secret", scale=0.5, digest="d1"), Adapter(name="b", scale=-1.0, digest="d2"))
    with Image.open(io.BytesIO(encoded("png", replace(PROVENANCE, adapters=asked)))) as image:
        assert image.text["adapters"] == "d1 0.5, d2 -1"
    assert b"secret" not in encoded("webp", replace(PROVENANCE, adapters=asked))
    assert b"adapters" not in encoded("webp")
