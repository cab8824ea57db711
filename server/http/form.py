"""Bodies of multipart/form-data: the same fields as in JSON, files as files and everything else as text.

For `curl -F prompt="a cat" -F image=@cat.png`, for HTML forms, and for dialects that upload pictures so. Text
is read as what its field is: "4" is a number there, "true" is true, an object is written as JSON.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, get_args

import msgspec
from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.errors import InvalidRequest, MalformedBody
from server.http.body import (
    Body,
    RequestBody,
    check_media_type,
    explained,
    object_of,
    read_body,
    read_json,
    shown,
)
from server.http.input_pictures import InputPicture

MAX_FILES: Final = 20  # of which a dialect may then say that they are too many
MAX_FIELDS: Final = 100
MAX_OBJECT_CHARS: Final = 10_000
PIECE_BYTES: Final = 256 << 10
JSON: Final = "application/json"
FORM: Final = "multipart/form-data"


async def read_fields(request: Request, kind: type[Body]) -> Body:
    """Read and check a body of either kind; raises `InvalidRequest` or one of its kinds."""
    if check_media_type(request, JSON, FORM) == JSON:
        return await read_json(request, kind)
    fields: dict[str, Any] = {}
    parts = await read_form(request)
    for name, times in Counter(name for name, _ in parts).items():
        if times > 1:
            raise InvalidRequest(f"{shown(name, quote='')} is given {times} times; allowed: once", field=name)
    for name, value in parts:
        field = kind.model_fields.get(name)
        holds_objects = field is not None and object_of(field.annotation) is not None
        fields[name] = _of_json(value) if holds_objects else value
    try:
        return kind.model_validate(fields, strict=False)
    except ValidationError as error:
        raise explained(error, kind) from None


async def read_form(request: Request) -> list[tuple[str, str | bytes]]:
    """Return the parts of a form in order, texts and the bytes of files; `name[]` is `name`.

    A file without name and content is what HTML sends for none, and is left out. Raises `MalformedBody`.
    """
    parser = _Parser(
        request.headers,
        _pieces(await read_body(request)),
        max_files=MAX_FILES,
        max_fields=MAX_FIELDS,
        max_part_size=_Parser.spool_max_size,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise MalformedBody(f"the body is not a form: {shown(error.message, quote='')}") from None
    parts: list[tuple[str, str | bytes]] = []
    for name, value in form.multi_items():
        content = await value.read() if isinstance(value, UploadFile) else value
        if content or not isinstance(value, UploadFile) or value.filename:
            parts.append((name.removesuffix("[]"), content))
    await form.close()
    return parts


def body_schema(kind: type[RequestBody], example: Mapping[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of a body that `read_fields` reads."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    as_form = {
        **schema,
        "properties": {
            name: {"type": "string", "format": "binary", "description": each.get("description", "")}
            if _is_picture(kind, name)
            else each
            for name, each in schema["properties"].items()
        },
    }
    content = {JSON: {"schema": schema, "example": example}, FORM: {"schema": as_form, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


class _Parser(MultiPartParser):
    """Keeps files in memory: the whole body is there already, and bounded."""

    spool_max_size = 1 << 31


async def _pieces(body: bytes) -> AsyncGenerator[bytes, None]:
    """Yield a body piece by piece, letting others run in between."""
    view = memoryview(body)
    for start in range(0, len(view), PIECE_BYTES):
        yield bytes(view[start : start + PIECE_BYTES])
        await asyncio.sleep(0)


def _of_json(value: str | bytes) -> object:
    """Return the object that a text says in JSON; what is none is left to be refused as what it is."""
    if len(value) > MAX_OBJECT_CHARS:
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return value


def _is_picture(kind: type[RequestBody], name: str) -> bool:
    field = kind.model_fields.get(name)
    return field is not None and InputPicture in (field.annotation, *get_args(field.annotation))
