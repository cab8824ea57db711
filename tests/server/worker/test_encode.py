"""Every format carries who made the picture, and nothing that it should not."""

import io
from dataclasses import replace
from typing import get_args
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from server.generation import ImageFormat
from server.worker.encode import GENERATED_MEDIA, XMP_KEYWORD, Provenance, encode_image, xmp_packet

PROVENANCE = Provenance(
    seed=42,
    width=48,
    height=32,
    steps=4,
    numerics="exact",
    model="tiny",
    digest="ab" * 32,
    version="0.1.0",
)
FORMATS = get_args(ImageFormat)


def encoded(image_format: ImageFormat, provenance: Provenance = PROVENANCE, quality: int = 90) -> bytes:
    ramp = np.linspace(0, 255, 32 * 48 * 3).astype(np.uint8).reshape(32, 48, 3)
    return encode_image(ramp, image_format=image_format, quality=quality, provenance=provenance)


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
    prompt = "ein \"Bär\" 🐻 & <b> ]]> 'quoted'\n\tnew line"
    root = ElementTree.fromstring(xmp_packet({"prompt": prompt, "seed": '"<&'}))
    assert prompt in [element.text for element in root.iter()]


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
def test_quality_counts(image_format: ImageFormat) -> None:
    assert len(encoded(image_format, quality=10)) < len(encoded(image_format, quality=95))
