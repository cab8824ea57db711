"""A picture as a client sends it: a `data:` address, base64, a URL, or a part of a form.

Dialects have fields of `InputPicture`; `server.http.sources` looks at what is in them. Whatever shows the
request again shows a picture shortly and by its digest, also when its bytes have been let go.
"""

import hashlib
from typing import Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

PICTURE_RULE: Final = (
    "a picture (PNG, JPEG or WebP) as data:image/png;base64,…; or its URL, where the server allows that"
)
BASE64_RULE: Final = "a picture (PNG, JPEG or WebP) in base64, also with data:image/png;base64, before it"
EXAMPLE_PICTURE: Final = (  # one red pixel
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGM4"
    "Y2wMAAMBATPEwnsTAAAAAElFTkSuQmCC"
)
TYPES: Final = {
    b"\x89PNG": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF": "image/webp",
}  # by their heads
SHORT_CHARS: Final = 2048  # as long as a URL may be


class InputPicture:
    """`content` is text, or the bytes of a file; None once it has been taken."""

    __slots__ = ("_shown", "content")

    def __init__(self, content: str | bytes) -> None:
        self.content: str | bytes | None = content
        self._shown: str | None = None

    @classmethod
    def of(cls, value: object) -> "InputPicture":
        """Take what a client sent; raises `ValueError`."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, str | bytes):
            raise ValueError("it is neither text nor a file")
        return cls(value)

    def shown(self) -> str:
        """Return a URL as it is, and of a picture how long it is and its digest."""
        if self._shown is None:
            assert self.content is not None, "it is shown before it is let go"
            self._shown = _shown(self.content)
        return self._shown

    def let_go(self) -> None:
        """Forget the content: it has been decoded."""
        self.shown()
        self.content = None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401
        return core_schema.no_info_plain_validator_function(
            cls.of, serialization=core_schema.plain_serializer_function_ser_schema(cls.shown)
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string"}


def _shown(content: str | bytes) -> str:
    if (
        isinstance(content, str)
        and len(content) <= SHORT_CHARS
        and content.startswith(("http://", "https://"))
    ):
        return content
    if isinstance(content, bytes):
        return f"{len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}"
    head = content.partition(",")[0][:60] + "," if content.startswith("data:") else ""
    text = content.encode("utf-8", "surrogatepass")
    return f"{head}… ({len(text)} characters, SHA-256 {hashlib.sha256(text).hexdigest()})"
