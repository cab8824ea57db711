"""The one OpenAPI document: what each route may answer, and the schemas that its bodies refer to.

Bodies are parsed by `server.http.body` and not by FastAPI, so their schemas come in as the dialects wrote
them, each with the definitions of its own parts; these are gathered where OpenAPI has them. Readers of Cog's
document look for `components.schemas.Input` and `.Output`, which are among them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from fastapi import FastAPI

from server.http.errors import STATUS

TEXTS: Final = {
    "malformed_body": "The body is not JSON",
    "malformed_header": "A header is malformed",
    "invalid_request": "A field is wrong",
    "unsupported_media_type": "The body is of another type or encoding",
    "request_too_large": "The body is too large",
    "not_found": "There is no such thing",
    "idempotency_key_reused": "The Idempotency-Key belongs to another request",
    "overloaded": "Overloaded: come back after Retry-After",
    "not_ready": "Not ready: come back after Retry-After",
    "worker_lost": "The worker died: come back after Retry-After",
    "deadline_exceeded": "The deadline passed",
    "cancelled": "The request was cancelled",
    "generation_failed": "The model could not make this picture",
    "internal_error": "The server failed on this request",
}
BODY_ERRORS: Final = ("malformed_body", "invalid_request", "unsupported_media_type", "request_too_large")
ENGINE_ERRORS: Final = (
    "overloaded",
    "not_ready",
    "worker_lost",
    "deadline_exceeded",
    "cancelled",
    "generation_failed",
    "internal_error",
)
JSON_CONTENT: Final[dict[str, Any]] = {"application/json": {}}


def described(
    *codes: str,
    ok: Mapping[str, Any] = JSON_CONTENT,
    ok_text: str = "Done",
    statuses: Mapping[str, int] = STATUS,
    content: Mapping[str, Any] = JSON_CONTENT,
) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: `ok` with 200, and the error codes with the dialect's statuses."""
    texts: dict[int, list[str]] = {}
    for code in codes:
        texts.setdefault(statuses[code], []).append(TEXTS[code])
    answers: dict[int | str, dict[str, Any]] = {200: {"description": ok_text, "content": dict(ok)}}
    for status, found in sorted(texts.items()):
        answers[status] = {"description": ". ".join(dict.fromkeys(found)), "content": dict(content)}
    return answers


def document(app: FastAPI) -> dict[str, Any]:
    """Return the description of all routes of `app`."""
    api = app.openapi()
    schemas = api.setdefault("components", {}).setdefault("schemas", {})
    for definitions in list(_definitions(api["paths"])):
        for name, schema in definitions.items():
            assert schemas.setdefault(name, schema) == schema, f"two schemas are called {name}"
    return api


def _definitions(value: object) -> Iterator[dict[str, Any]]:
    """Take the `$defs` out of all schemas below `value`."""
    if isinstance(value, dict):
        if "$defs" in value:
            yield value.pop("$defs")
        for inner in list(value.values()):
            yield from _definitions(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _definitions(inner)
