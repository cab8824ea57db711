"""From pixels to the bytes that a client gets, with what made them written inside.

Runs in threads beside the step loop. Nothing about the host, the caller or the time is written, and the
prompt only when the request asked for it.
"""

import hashlib
import io
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.generation import Adapter, ImageFormat
from server.worker.png import check_pixels, encode_png

XMP_KEYWORD: Final = "XML:com.adobe.xmp"
GENERATED_MEDIA: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
EDITED_MEDIA: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
FULL_CHROMA_QUALITY: Final = 90  # from here on JPEG keeps the colours of every pixel
NOT_XML: Final = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
MAX_SEGMENT_BYTES: Final = 65_533  # of a JPEG marker segment, without its length
XMP_SIGNATURE: Final = b"http://ns.adobe.com/xap/1.0/\0"
EXTENSION_SIGNATURE: Final = b"http://ns.adobe.com/xmp/extension/\0"


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a picture; sizes in pixels, `digest` of the weights, `prompt` only on request.

    `strength` is there where it was made from another picture, of which nothing else is said.
    Of adapters the digests and scales are written, since names mean something on one server only.
    """

    seed: int
    width: int
    height: int
    steps: int
    numerics: str
    quantize: str
    model: str
    digest: str
    version: str
    adapters: tuple[Adapter, ...] = ()
    prompt: str | None = None
    strength: float | None = None

    @property
    def media_type(self) -> str:
        """The IPTC's term for where its pixels come from."""
        return GENERATED_MEDIA if self.strength is None else EDITED_MEDIA

    def texts(self) -> dict[str, str]:
        """Return the text chunks of a PNG, and the attributes of an XMP packet."""
        texts = {
            "Software": f"schnell-server {self.version}",
            "seed": str(self.seed),
            "size": f"{self.width}x{self.height}",
            "steps": str(self.steps),
            "numerics": self.numerics,
            "quantize": self.quantize,
            "model": self.model,
            "model_digest": self.digest,
        }
        if self.strength is not None:
            texts["strength"] = f"{self.strength:g}"
        if self.adapters:
            texts["adapters"] = ", ".join(f"{each.digest} {each.scale:g}" for each in self.adapters)
        return texts if self.prompt is None else texts | {"prompt": self.prompt}


def encode_image(
    pixels: npt.NDArray[np.uint8], *, image_format: ImageFormat, quality: int, provenance: Provenance
) -> bytes:
    """Encode `pixels` [height, width, 3]; `quality` 1 to 100 counts for JPEG and WebP.

    Raises `ValueError` for arrays of another kind.
    """
    check_pixels(pixels)
    texts = provenance.texts()
    if image_format == "png":
        return encode_png(pixels, texts | {XMP_KEYWORD: xmp_packet({}, provenance.media_type)})
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if image_format == "jpeg":
        subsampling = "4:4:4" if quality >= FULL_CHROMA_QUALITY else "4:2:0"
        extra = _xmp_segments(texts, provenance.media_type)
        image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, extra=extra)
    else:
        image.save(buffer, "WEBP", quality=quality, xmp=xmp_packet(texts, provenance.media_type).encode())
    return buffer.getvalue()


def xmp_packet(texts: Mapping[str, str], media_type: str, *, extension: str | None = None) -> str:
    """Return an XMP packet that marks generated media (IPTC digital source type) and carries `texts`.

    `extension` is the digest of an extended packet that holds what this one has no room for.
    """
    attributes = {"Iptc4xmpExt:DigitalSourceType": media_type}
    attributes |= {f"flux:{name.lower()}": text for name, text in texts.items() if name != "prompt"}
    if extension is not None:
        attributes["xmpNote:HasExtendedXMP"] = extension
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        + _xmp_meta(attributes, prompt=texts.get("prompt"))
        + '<?xpacket end="r"?>'
    )


def _xmp_meta(attributes: Mapping[str, str], prompt: str | None) -> str:
    written = "".join(f" {name}={quoteattr(_legal(text))}" for name, text in attributes.items())
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:flux="urn:schnell-server:provenance"'
        f' xmlns:xmpNote="http://ns.adobe.com/xmp/note/"{written}>{_description(prompt)}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    )


def _description(prompt: str | None) -> str:
    """Return dc:description, by its schema texts by language; XML reads a bare return as a newline."""
    if prompt is None:
        return ""
    text = escape(_legal(prompt), {"\r": "&#13;"})
    return f'<dc:description><rdf:Alt><rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt></dc:description>'


def _legal(text: str) -> str:
    """Replace what XML cannot express even escaped; U+FFFE, for one, may stand in a prompt."""
    return NOT_XML.sub("\ufffd", text)


def _xmp_segments(texts: Mapping[str, str], media_type: str) -> bytes:
    """Return the APP1 segments of a JPEG: one packet, and where the prompt does not fit, its extension.

    A segment holds 64 KiB, a prompt up to 160 kB once escaped (XMP specification, part 3, section 1.1.3.1).
    """
    packet = XMP_SIGNATURE + xmp_packet(texts, media_type).encode()
    if len(packet) <= MAX_SEGMENT_BYTES:
        return _app1(packet)
    extended = _xmp_meta({}, prompt=texts["prompt"]).encode()
    digest = hashlib.md5(extended, usedforsecurity=False).hexdigest().upper()
    short = {name: text for name, text in texts.items() if name != "prompt"}
    segments = [_app1(XMP_SIGNATURE + xmp_packet(short, media_type, extension=digest).encode())]
    room = MAX_SEGMENT_BYTES - len(EXTENSION_SIGNATURE) - len(digest) - 8
    for start in range(0, len(extended), room):
        place = struct.pack(">II", len(extended), start)
        part = extended[start : start + room]
        segments.append(_app1(EXTENSION_SIGNATURE + digest.encode() + place + part))
    return b"".join(segments)


def _app1(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
