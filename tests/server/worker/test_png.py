"""The PNG writer against Pillow and a chunk parser of its own."""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from server.worker.png import SIGNATURE, encode_png


def picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Parse a PNG strictly: lengths, checksums, nothing after the end."""
    assert data.startswith(SIGNATURE)
    found, position = [], len(SIGNATURE)
    while position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        assert checksum == zlib.crc32(kind + body)
        found.append((kind, body))
        position += 12 + length
    return found


@pytest.mark.parametrize("size", [(1, 1), (3, 17), (17, 3), (256, 384), (61, 255)])
def test_pillow_reads_the_pixels_back(size: tuple[int, int]) -> None:
    pixels = picture(*size)
    with Image.open(io.BytesIO(encode_png(pixels, {}))) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), pixels)


def test_rows_are_differences_to_the_row_above() -> None:
    pixels = picture(3, 2)
    (data,) = (body for kind, body in chunks(encode_png(pixels, {})) if kind == b"IDAT")
    rows = np.frombuffer(zlib.decompress(data), np.uint8).reshape(3, 7)
    assert rows[:, 0].tolist() == [2, 2, 2]
    assert np.array_equal(np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8), pixels.reshape(3, 6))


def test_a_view_that_is_not_contiguous_is_encoded_as_it_looks() -> None:
    pixels = picture(20, 30)[::2, ::3]
    with Image.open(io.BytesIO(encode_png(pixels, {}))) as image:
        assert np.array_equal(np.asarray(image), pixels)


def test_texts_are_read_back_whatever_they_hold() -> None:
    texts = {"seed": "42", "prompt": 'ein "Bär" 🐻\n& ]]> <b>', "Latin": "né"}
    with Image.open(io.BytesIO(encode_png(picture(2, 2), texts))) as image:
        image.load()
        assert image.text == texts


def test_only_the_known_chunks_are_written() -> None:
    found = chunks(encode_png(picture(4, 4), {"seed": "1", "prompt": "é"}))
    assert [kind for kind, _ in found] == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]


def test_equal_input_gives_equal_bytes() -> None:
    assert encode_png(picture(64, 64), {"seed": "1"}) == encode_png(picture(64, 64), {"seed": "1"})


@pytest.mark.parametrize(
    ("pixels", "seen"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32 \[4, 4, 3\]"),
        (np.zeros((4, 4), np.uint8), r"uint8 \[4, 4\]"),
        (np.zeros((4, 4, 4), np.uint8), r"uint8 \[4, 4, 4\]"),
        (np.zeros((0, 4, 3), np.uint8), r"uint8 \[0, 4, 3\]"),
    ],
)
def test_arrays_of_another_kind_are_refused(pixels: npt.NDArray[np.uint8], seen: str) -> None:
    with pytest.raises(ValueError, match=seen):
        encode_png(pixels, {})


@pytest.mark.parametrize("keyword", ["", " seed", "seed ", "x" * 80, "sé", "a\0b", "a  b", "a\n"])
def test_keywords_that_png_forbids_are_refused(keyword: str) -> None:
    with pytest.raises(ValueError, match="PNG keyword"):
        encode_png(picture(1, 1), {keyword: "1"})


@pytest.mark.parametrize("keyword", ["a", "x" * 79, "Creation Time"])
def test_keywords_that_png_allows_are_written(keyword: str) -> None:
    with Image.open(io.BytesIO(encode_png(picture(1, 1), {keyword: "1"}))) as image:
        image.load()
        assert image.text == {keyword: "1"}


def test_a_text_with_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        encode_png(picture(1, 1), {"prompt": "a\0b"})
