"""Files for tests: pictures in every way in which they come, and what pretends to be one."""

import io
import struct
import zlib
from typing import Any

from PIL import Image


def gradient(width: int = 320, height: int = 256) -> Image.Image:
    """A picture in which every pixel tells its place."""
    across = Image.linear_gradient("L").rotate(90).resize((width, height))
    down = Image.linear_gradient("L").resize((width, height))
    return Image.merge("RGB", (across, down, Image.new("L", (width, height), 60)))


def file_of(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, depth: int = 1, colour: int = 0) -> bytes:
    """A PNG file that says what it likes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    """A PNG file of black pixels, 1000 times as large unpacked."""
    rows = zlib.compressobj(9)
    row = b"\0" * (1 + side // 8)
    data = b"".join(rows.compress(row) for _ in range(side)) + rows.flush()
    return png(side, side, chunk(b"IDAT", data))


def text_bomb(kind: bytes = b"zTXt") -> bytes:
    """A small picture with 64 MiB of text, packed into 64 KiB."""
    text = zlib.compress(b"a" * (64 << 20), 9)
    head = b"Comment\0\0" if kind == b"zTXt" else b"icc\0\0"
    return png(16, 16, chunk(kind, head + text), chunk(b"IDAT", zlib.compress(b"\0\0\0" * 16)))
