"""From the bytes of a request to a checked model: strict JSON, and errors that name field, value and rule.

Parsed here and not by FastAPI's own body handling, which answers 500 to NaN and to lone surrogates because
its error renderer cannot encode them. Each field's description says what is allowed; it is shown in the API
documentation and in the error alike.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar, get_args

from fastapi import Request
from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from starlette.requests import ClientDisconnect

from server.errors import InvalidRequest, MalformedBody, RequestTooLarge, UnsupportedMediaType
from server.http.exchange import ClientGone, exchange_of
from server.http.room import FREE_BYTES

SHOWN_CHARS: Final = 60
# A large body is a picture or two, and text. One of 32 MiB that is a list of small numbers would take half a
# second and as many hundred megabytes to read; its commas are counted in milliseconds.
MAX_COMMAS: Final = 200_000
CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

Body = TypeVar("Body", bound="RequestBody")


class RequestBody(BaseModel):
    """Base of all wire models."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def _without_controls(text: str) -> str:
    if found := CONTROL.search(text):
        raise ValueError(f"control character U+{ord(found[0]):04X} at position {found.start()}")
    if not text.isascii():
        text.encode()  # lone surrogates cannot be tokenized
    return text


Text = Annotated[str, AfterValidator(_without_controls)]


async def read_json(request: Request, kind: type[Body]) -> Body:
    """Read and check the body; raises `InvalidRequest` or one of its kinds."""
    check_media_type(request, "application/json")
    body = await read_body(request)
    if len(body) > FREE_BYTES and body.count(b",") > MAX_COMMAS:
        message = f"the body is larger than {FREE_BYTES} bytes and has more than {MAX_COMMAS} commas"
        raise RequestTooLarge(f"{message}; allowed: only pictures of that size")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise explained(error, kind) from None


def check_media_type(request: Request, *allowed: str) -> str:
    """Return of which type the body is; raises `UnsupportedMediaType`."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in allowed:
        message = f"content-type is {shown(media_type)}; allowed: {' or '.join(allowed)}"
        raise UnsupportedMediaType(message, field="content-type")
    return media_type


def check_query(request: Request, kind: type[Body]) -> Body:
    """Check query parameters, whose values are strings of what the model wants."""
    for name, times in Counter(name for name, _ in request.query_params.multi_items()).items():
        if times > 1:
            shown_name = shown(name, quote="")
            raise InvalidRequest(f"{shown_name} is given {times} times; allowed: once", field=shown_name)
    try:
        return kind.model_validate(dict(request.query_params), strict=False)
    except ValidationError as error:
        raise explained(error, kind) from None


async def read_body(request: Request) -> bytes:
    """Read the body up to the limit; one that is announced as longer is refused before it is sent.

    A large one is read when there is room for it.
    """
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise UnsupportedMediaType(
            f"content-encoding is {shown(encoding)}; allowed: identity", field="content-encoding"
        )
    exchange = exchange_of(request)
    limit_bytes = exchange.max_body_bytes
    too_large = RequestTooLarge(f"the body is larger than the limit of {limit_bytes} bytes")
    length = int(request.headers.get("content-length", 0))  # the parser lets only digits through
    if length > limit_bytes:
        raise too_large
    await exchange.take_room(length)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit_bytes:
                raise too_large
            if len(body) > FREE_BYTES:
                await exchange.take_room(limit_bytes)  # it comes in chunks, of which nobody knows how many
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(body)


def explained(error: ValidationError, kind: type[RequestBody]) -> InvalidRequest:
    """Turn pydantic's first finding into one sentence with field, value and what is allowed."""
    finding = error.errors(include_url=False, include_context=True)[0]
    if not finding["loc"] and finding["type"] in ("json_invalid", "model_type", "model_attributes_type"):
        reason = str(finding.get("ctx", {}).get("error", "it is not an object"))
        return MalformedBody(f"the body is not a JSON object: {shown(reason, quote='')}")
    path, field = _path(kind, [str(part) for part in finding["loc"]] or ["body"])
    name = shown(".".join(path), quote="")
    if finding["type"] == "extra_forbidden":
        known = ", ".join(sorted(_owner(kind, path[:-1]).model_fields))
        return InvalidRequest(f"{name} is not a field of this request; allowed: {known}", field=name)
    allowed = (field.description if field else None) or "another value"
    if finding["type"] == "missing":
        return InvalidRequest(f"{name} is missing; it is {allowed}", field=name, missing=True)
    reason = f" ({shown(str(finding['msg']), quote='')})" if finding["type"] == "value_error" else ""
    return InvalidRequest(f"{name} is {shown(finding['input'])}{reason}; allowed: {allowed}", field=name)


def _path(kind: type[BaseModel], location: Sequence[str]) -> tuple[list[str], FieldInfo | None]:
    """Return the part of a finding's location that names fields, and the field where it ends, if it is one.

    What follows is about the inside of a value: the member of a union, the index in a list.
    """
    name, *rest = location
    field = next((field for own, field in kind.model_fields.items() if name in _names(own, field)), None)
    inner = None if field is None else object_of(field.annotation)
    if inner is None or not rest:
        return [name], field
    index = [rest.pop(0)] if rest[0].isdigit() else []  # of an object in a list
    if not rest:
        return [name, *index], field
    path, field = _path(inner, rest)
    return [name, *index, *path], field


def _owner(kind: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """Return the kind of object at `path`, which names fields and indices."""
    for name in path:
        field = kind.model_fields.get(name)
        kind = (object_of(field.annotation) if field is not None else None) or kind
    return kind


def _names(own: str, field: FieldInfo) -> Sequence[object]:
    alias = field.validation_alias
    return alias.choices if isinstance(alias, AliasChoices) else (own,)


def object_of(annotation: object) -> type[BaseModel] | None:
    """Return the kind of object that a field holds, alone or in a list, if it holds one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((kind for part in get_args(annotation) if (kind := object_of(part))), None)


def shown(value: object, quote: str = '"') -> str:
    """Render a value of a client safely and shortly; whatever it is, this does not fail."""
    if isinstance(value, str):
        text = value[:SHOWN_CHARS].encode("unicode_escape").decode("ascii")
        return f"{quote}{text}{quote}" + (f"… ({len(value)} characters)" if len(value) > SHOWN_CHARS else "")
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, list | Mapping):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)} entries"
    return str(value)[:SHOWN_CHARS].encode("ascii", "replace").decode()


def json_schema(kind: type[RequestBody], example: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of a body that is parsed here."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": example}},
        }
    }
