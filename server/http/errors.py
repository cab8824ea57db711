"""The one table from error codes to HTTP statuses, and the body that every failure has.

Dialects may use another status for a kind of error or another body; the codes and messages stay the same.
"""

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute

from server.errors import InvalidRequest, ServerError
from server.http.auth import authenticate
from server.http.exchange import exchange_of

STATUS: Final = {
    "malformed_body": 400,
    "malformed_header": 400,
    "idempotency_key_reused": 422,
    "invalid_request": 422,
    "unsupported_media_type": 415,
    "request_too_large": 413,
    "invalid_api_key": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "not_acceptable": 406,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "overloaded": 429,
    "not_ready": 503,
    "storage_unavailable": 503,
    "worker_lost": 503,
    "deadline_exceeded": 504,
    "cancelled": 499,
    "generation_failed": 500,
    "out_of_memory": 500,
    "internal_error": 500,
}
ERROR_CODES: Final = frozenset(STATUS)
DEFAULT_RETRY_AFTER_S: Final = 1

Render = Callable[[Request, ServerError], Response]


def error_body(error: ServerError, request_id: str, kind: str) -> bytes:
    """Return the JSON body of a failure; the same shape for every status."""
    return msgspec.json.encode({"error": error_object(error, request_id, kind)})


def error_object(error: ServerError, request_id: str, kind: str) -> dict[str, Any]:
    """Return what is said of a failure."""
    return {
        "code": error.code,
        "type": kind,
        "message": message_of(error),
        "param": error.field if isinstance(error, InvalidRequest) else None,
        "request_id": request_id,
        "retryable": error.retryable,
    }


def unexpected_error() -> ServerError:
    """Return what a client is told of a fault of ours."""
    return ServerError("the server failed on this request; its log has the reason under the request id")


def message_of(error: ServerError) -> str:
    """Return the message as text that JSON can carry, whatever a client had in it."""
    return error.message.encode("utf-8", "replace").decode()


def error_kind(status: int) -> str:
    """Return the broad type that clients of the OpenAI dialect know."""
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def render_error(request: Request, error: ServerError, *, statuses: Mapping[str, int] = STATUS) -> Response:
    """Answer a failure in the server's own shape."""
    body = error_body(error, exchange_of(request).request_id, error_kind(statuses[error.code]))
    return error_response(request, error, body, statuses=statuses)


def error_response(
    request: Request,
    error: ServerError,
    body: bytes,
    *,
    statuses: Mapping[str, int] = STATUS,
    media_type: str = "application/json",
) -> Response:
    """Answer a failure with the `body` of a dialect; note it for this request's log line and metrics."""
    exchange_of(request).outcome = error.code
    status = statuses[error.code]
    headers = {}
    if error.retryable or error.retry_after_s is not None:
        retry_after_s = max(DEFAULT_RETRY_AFTER_S, math.ceil(error.retry_after_s or DEFAULT_RETRY_AFTER_S))
        headers["Retry-After"] = str(retry_after_s)
    if status >= 429:
        headers["x-should-retry"] = str(error.retryable).lower()
    return Response(body, status, headers, media_type=media_type)


def route_class(render: Render) -> type[APIRoute]:
    """Return a route class whose handlers may raise `ServerError`, answered by `render`.

    Who is not let in does not reach a handler, and is answered by `render` too.
    """

    class DialectRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Awaitable[Any]]:  # type: ignore[override]
            handler = super().get_route_handler()

            async def answer(request: Request) -> Response:
                try:
                    authenticate(request)
                    response: Response = await handler(request)
                except ServerError as error:
                    return render(request, error)
                return response

            return answer

    return DialectRoute
