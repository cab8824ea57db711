"""The one OpenAPI document: what each route may answer, and the schemas that its bodies refer to.

Bodies are parsed by `server.http.body` and not by FastAPI, so their schemas come in as the dialects wrote
them, each with the definitions of its own parts; these are gathered where OpenAPI has them. Readers of Cog's
document look for `components.schemas.Input` and `.Output`, which are among them.
"""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI

from server.http.auth import OPEN_ROUTES
from server.http.errors import STATUS

TEXTS: Final = {
    "malformed_body": "The body is not JSON",
    "malformed_header": "A header is malformed",
    "invalid_request": "A field is wrong",
    "unsupported_media_type": "The body is of another type or encoding",
    "request_too_large": "The body is too large",
    "invalid_api_key": "The API key is missing or wrong",
    "forbidden": "The API key may not ask for that",
    "rate_limited": "Over a limit of the API key: come back after Retry-After",
    "quota_exceeded": "The API key has used up its day",
    "not_found": "There is no such thing",
    "not_acceptable": "What Accept asks for is not to be had",
    "idempotency_key_reused": "The Idempotency-Key belongs to another request",
    "overloaded": "Overloaded: come back after Retry-After",
    "storage_unavailable": "The disk does not take it: come back after Retry-After",
    "not_ready": "Not ready: come back after Retry-After",
    "worker_lost": "The worker died: come back after Retry-After",
    "deadline_exceeded": "The deadline passed",
    "cancelled": "The request was cancelled",
    "generation_failed": "The model could not make this picture",
    "internal_error": "The server failed on this request",
}
BODY_ERRORS: Final = ("malformed_body", "invalid_request", "unsupported_media_type", "request_too_large")
KEY_ERRORS: Final = ("forbidden", "rate_limited", "quota_exceeded")
ENGINE_ERRORS: Final = (
    *KEY_ERRORS,
    "overloaded",
    "not_ready",
    "worker_lost",
    "deadline_exceeded",
    "cancelled",
    "generation_failed",
    "internal_error",
)
HEAD_TOO_LARGE: Final = {  # said before any route is found
    "description": "The head of the request is too large",
    "content": {"application/json": {}},
}
NO_KEY: Final = {  # said before a handler is reached
    "description": TEXTS["invalid_api_key"],
    "content": {"application/json": {}},
}
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
        if status == 200:  # a dialect that answers failures so has said it in `ok_text`
            continue
        answers[status] = {"description": ". ".join(dict.fromkeys(found)), "content": dict(content)}
    return answers


def document(app: FastAPI) -> dict[str, Any]:
    """Return the description of all routes of `app`."""
    schemas: dict[str, Any] = {}
    api: dict[str, Any] = _gather(app.openapi(), schemas)
    for path, methods in api["paths"].items():
        everywhere = (
            {"431": HEAD_TOO_LARGE} if path in OPEN_ROUTES else {"401": NO_KEY, "431": HEAD_TOO_LARGE}
        )
        for operation in methods.values():
            operation["responses"] |= everywhere
    schemas.update(api.get("components", {}).get("schemas", {}))
    return api | {"components": {"schemas": schemas}}


def _gather(value: Any, schemas: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """Return `value` without the `$defs` of its schemas, which go to `schemas`."""
    if isinstance(value, list):
        return [_gather(inner, schemas) for inner in value]
    if not isinstance(value, dict):
        return value
    for name, schema in value.get("$defs", {}).items():
        gathered = _gather(schema, schemas)
        assert schemas.setdefault(name, gathered) == gathered, f"two schemas are called {name}"
    return {name: _gather(inner, schemas) for name, inner in value.items() if name != "$defs"}
