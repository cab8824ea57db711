"""Answers that are a picture, and JSON answers that carry pictures as base64.

The latter are written in pieces so that other requests are served meanwhile.

Encoding holds the interpreter's lock, in a thread too: eight pictures of 1536x1536 stopped the whole front
end for 180 to 550 ms, where a piece takes 1 ms. The largest answer is also never in memory as a whole.
"""

import asyncio
import binascii
from collections.abc import AsyncIterator, Mapping
from typing import Final

import msgspec
from fastapi import Response
from fastapi.responses import StreamingResponse

from server.generation import Image

PIECE_BYTES: Final = 3 << 18  # a multiple of 3, so that the base64 of the pieces joins
HOLE: Final = b"\0"  # cannot occur in JSON from msgspec, which escapes it


class Picture:
    """Bytes that become a JSON string: `prefix` and then their base64. No dataclass: msgspec knows those."""

    __slots__ = ("data", "prefix")

    def __init__(self, data: bytes, *, prefix: str = "") -> None:
        self.data = data
        self.prefix = prefix

    def length(self) -> int:
        return len(self.prefix) + 4 * -(-len(self.data) // 3)


def picture_response(image: Image, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with the file itself; its seed is in a header."""
    return Response(
        image.data, media_type=image.content_type, headers={"X-Seed": str(image.seed)} | dict(headers or {})
    )


def pictures_response(content: object, status: int = 200) -> Response:
    """Answer `content`, anything that JSON knows with a `Picture` wherever one belongs."""
    return _response(*_cut(content), status, media_type="application/json")


def pieces(content: object) -> AsyncIterator[bytes]:
    """Return the JSON of `content`, on one line, in pieces as `pictures_response` sends them."""
    return _pieces(*_cut(content))


def spelled(picture: Picture) -> AsyncIterator[bytes]:
    """Return a picture as the text that JSON would have of it, in pieces."""
    return _pieces([b"", b""], [picture])


def _cut(content: object) -> tuple[list[bytes], list[Picture]]:
    """Return the JSON of `content` in the frames that are around its pictures, and these."""
    pictures: list[Picture] = []

    def leave_hole(value: object) -> msgspec.Raw:
        assert isinstance(value, Picture), f"JSON does not know {type(value)}"
        pictures.append(value)
        return msgspec.Raw(b'"' + HOLE + b'"')

    return msgspec.json.encode(content, enc_hook=leave_hole).split(HOLE), pictures


def _response(frames: list[bytes], pictures: list[Picture], status: int, *, media_type: str) -> Response:
    length = sum(map(len, frames)) + sum(picture.length() for picture in pictures)
    headers = {"Content-Length": str(length)}
    return StreamingResponse(_pieces(frames, pictures), status, media_type=media_type, headers=headers)


def pictures_json(content: object) -> bytes:
    """Return `content` with its pictures in one piece, for what is sent and not answered."""

    def whole(value: object) -> str:
        assert isinstance(value, Picture), f"JSON does not know {type(value)}"
        return value.prefix + binascii.b2a_base64(value.data, newline=False).decode()

    return msgspec.json.encode(content, enc_hook=whole)


async def _pieces(frames: list[bytes], pictures: list[Picture]) -> AsyncIterator[bytes]:
    """Yield the text around the pictures and the pictures in turn, letting others run in between."""
    for frame, picture in zip(frames, pictures, strict=False):
        yield frame + picture.prefix.encode()
        view = memoryview(picture.data)
        for start in range(0, len(view), PIECE_BYTES):
            yield binascii.b2a_base64(view[start : start + PIECE_BYTES], newline=False)
            await asyncio.sleep(0)
    yield frames[-1]
