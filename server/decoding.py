"""The words between the front end and its decoders: pictures of strangers go in, raw pixels come out.

Tagged msgpack in the frames of `server.protocol`. A decoder is told all that it needs in each message, and
answers each with one.
"""

from enum import StrEnum
from typing import Final, Literal

import msgspec

from server.geometry import Borders, Size, can_be_made
from server.protocol import ProtocolError

MAX_TO_FRONT_BYTES: Final = 16 << 20  # 1536x1536 with mask and blend is 11.8 MB


class Fit(StrEnum):
    """How a picture comes to a size of another proportion; as diffusers' default, crop and fill."""

    STRETCH = "stretch"
    CROP = "crop"  # its middle, as much as has the proportion
    FILL = "fill"  # the whole of it, with its edges drawn out around it


class Painted(StrEnum):
    """What of a mask says that its place is drawn anew."""

    LIGHT = "light"
    DARK = "dark"
    CLEAR = "clear"  # transparency


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A file as a client sent it: as it is, or in base64."""

    data: memoryview
    base64: bool


class Decode(msgspec.Struct, frozen=True, kw_only=True, tag="decode"):
    """Make a picture, and a mask, into what the model starts from.

    `width` and `height` as in `geometry.size_for`; with `borders` there are none. With `clear_is_mask` the
    transparency of the picture is its mask, where there is no other. With `preserve` what is kept is pasted
    back, over `blur` pixels around an edge of the mask.
    """

    image: Sent
    mask: Sent | None = None
    painted: Painted = Painted.LIGHT
    clear_is_mask: bool = False
    width: int | None = None
    height: int | None = None
    fit: Fit = Fit.STRETCH
    borders: Borders | None = None
    preserve: bool = True
    blur: int = 0


class Decoded(msgspec.Struct, frozen=True, kw_only=True, tag="decoded"):
    """The parts of a `generation.Source`, and its size."""

    width: int
    height: int
    pixels: bytes
    mask: bytes | None
    blend: bytes | None


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """A file is none that can be used; `found` and `allowed` complete a sentence about it."""

    about: Literal["image", "mask"]
    found: str
    allowed: str


class Idle(msgspec.Struct, frozen=True, tag="idle"):
    """The first message of a decoder: it has started, and what ends it from now on is a picture."""


Answer = Decoded | Refused
FromDecoder = Idle | Answer

_question_decoder: msgspec.msgpack.Decoder[Decode] = msgspec.msgpack.Decoder(Decode)
_answer_decoder: msgspec.msgpack.Decoder[FromDecoder] = msgspec.msgpack.Decoder(FromDecoder)


def read_question(body: bytes) -> Decode:
    """Decode what the front end sent; raises `ProtocolError` for anything else."""
    try:
        return _question_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message to a decoder: {error}") from None


def read_answer(body: bytes) -> FromDecoder:
    """Decode what a decoder sent; raises `ProtocolError` for anything else.

    Strangers' pictures may have taken a decoder over, so what it says of sizes is not believed.
    """
    try:
        answer = _answer_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message of a decoder: {error}") from None
    if isinstance(answer, Decoded):
        _check_sizes(answer)
    return answer


def _check_sizes(answer: Decoded) -> None:
    """Raise `ProtocolError` for a size that cannot be made, or pixels that are not of that size."""
    if not can_be_made(Size(answer.width, answer.height)):
        raise ProtocolError(f"a decoder says that a picture is {answer.width}x{answer.height}")
    area = answer.width * answer.height
    for name, part, length in (
        ("pixels", answer.pixels, 3 * area),
        ("mask", answer.mask, area),
        ("blend", answer.blend, area),
    ):
        if part is not None and len(part) != length:
            raise ProtocolError(f"a decoder sends {len(part)} bytes of {name}, not {length}")
