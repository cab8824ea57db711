"""From pixels to the bytes that a client gets, with what made them written inside.

Runs in threads beside the step loop. Nothing about the host, the caller or the time is written, and the
prompt only when the request asked for it.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt
from PIL import Image

from server.generation import ImageFormat
from server.worker.png import encode_png

XMP_KEYWORD: Final = "XML:com.adobe.xmp"
GENERATED_MEDIA: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
FULL_CHROMA_QUALITY: Final = 90  # from here on JPEG keeps the colours of every pixel


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a picture; sizes in pixels, `digest` of the weights, `prompt` only on request."""

    seed: int
    width: int
    height: int
    steps: int
    numerics: str
    model: str
    digest: str
    version: str
    prompt: str | None = None

    def texts(self) -> dict[str, str]:
        """Return the text chunks of a PNG, and the attributes of an XMP packet."""
        texts = {
            "Software": f"schnell-server {self.version}",
            "seed": str(self.seed),
            "size": f"{self.width}x{self.height}",
            "steps": str(self.steps),
            "numerics": self.numerics,
            "model": self.model,
            "model_digest": self.digest,
        }
        return texts if self.prompt is None else texts | {"prompt": self.prompt}


def encode_image(
    pixels: npt.NDArray[np.uint8], *, image_format: ImageFormat, quality: int, provenance: Provenance
) -> bytes:
    """Encode `pixels` [height, width, 3]; `quality` 1 to 100 counts for JPEG and WebP."""
    texts = provenance.texts()
    if image_format == "png":
        return encode_png(pixels, texts | {XMP_KEYWORD: xmp_packet({})})
    packet = xmp_packet(texts).encode()
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    if image_format == "jpeg":
        subsampling = "4:4:4" if quality >= FULL_CHROMA_QUALITY else "4:2:0"
        image.save(buffer, "JPEG", quality=quality, subsampling=subsampling, xmp=packet)
    else:
        image.save(buffer, "WEBP", quality=quality, xmp=packet)
    return buffer.getvalue()


def xmp_packet(texts: Mapping[str, str]) -> str:
    """Return an XMP packet that marks generated media (IPTC digital source type) and carries `texts`."""
    prompt = f"<dc:description>{_plain(texts['prompt'])}</dc:description>" if "prompt" in texts else ""
    attributes = "".join(
        f" flux:{keyword.lower()}={quoteattr(text)}" for keyword, text in texts.items() if keyword != "prompt"
    )
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:flux="urn:schnell-server:provenance"'
        f' Iptc4xmpExt:DigitalSourceType="{GENERATED_MEDIA}"{attributes}>{prompt}</rdf:Description>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )


def _plain(text: str) -> str:
    """Escape text for XML; dc:description is an alternative of languages by its schema."""
    return f'<rdf:Alt><rdf:li xml:lang="x-default">{escape(text)}</rdf:li></rdf:Alt>'
