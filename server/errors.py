"""Every failure that a client can be told of, each with a stable code.

ServerError
├── InvalidRequest      the request itself is wrong; names field, value and what is allowed
│   ├── MalformedBody         its body is not a JSON object
│   ├── UnsupportedMediaType  its body is of another type or encoding
│   ├── RequestTooLarge       its body or head is longer than the limit
│   ├── MalformedHeader       a header that the server reads is not what it has to be
│   ├── KeyReused             its Idempotency-Key belongs to another request
│   ├── Forbidden             this key may not ask for that
│   ├── NotFound              there is nothing at this path, or no such model
│   ├── MethodNotAllowed      the path takes other methods
│   └── NotAcceptable         there is no answer of the kind that the client accepts
├── InvalidApiKey       there is no API key in it, or none of this server's
├── RateLimited         this key asks too often, or for too much at once; come back soon
├── QuotaExceeded       this key has used up its day; carries the seconds until the next
├── Overloaded          the backlog is full; carries the seconds after which to come back
├── NotReady            starting, draining or without a worker; come back
├── StorageUnavailable  the disk does not take what has to be kept; come back
├── DeadlineExceeded    the request's own deadline passed, or its picture cannot be finished by then
├── WorkerLost          the worker died twice under this request; the same request may succeed later
├── GenerationFailed    the model could not make this picture; the same request will fail again
│   └── OutOfMemory           the device has too little memory for it, even alone
└── Cancelled           somebody asked to forget this request

The HTTP status of a code stands in one table, `server/http/errors.py`. Messages are written for clients:
no traceback, no path of the host, nobody's prompt.
"""

from typing import ClassVar


class ServerError(Exception):
    """Base of the tree. `code` crosses the process border and the wire; `retryable` is advice."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidRequest(ServerError):
    """`field` is the name that the client used, with dots into objects; None for the body as a whole.

    `missing` when the field is wrong because it is not there.
    """

    code = "invalid_request"

    def __init__(self, message: str, *, field: str | None = None, missing: bool = False) -> None:
        super().__init__(message)
        self.field = field
        self.missing = missing


class MalformedBody(InvalidRequest):
    code = "malformed_body"


class UnsupportedMediaType(InvalidRequest):
    code = "unsupported_media_type"


class RequestTooLarge(InvalidRequest):
    code = "request_too_large"


class MalformedHeader(InvalidRequest):
    code = "malformed_header"


class KeyReused(InvalidRequest):
    code = "idempotency_key_reused"


class Forbidden(InvalidRequest):
    code = "forbidden"


class NotFound(InvalidRequest):
    code = "not_found"


class MethodNotAllowed(InvalidRequest):
    code = "method_not_allowed"


class NotAcceptable(InvalidRequest):
    code = "not_acceptable"


class InvalidApiKey(ServerError):
    code = "invalid_api_key"


class RateLimited(ServerError):
    code = "rate_limited"
    retryable = True


class QuotaExceeded(ServerError):
    code = "quota_exceeded"


class Overloaded(ServerError):
    code = "overloaded"
    retryable = True


class NotReady(ServerError):
    code = "not_ready"
    retryable = True


class StorageUnavailable(ServerError):
    code = "storage_unavailable"
    retryable = True


class DeadlineExceeded(ServerError):
    code = "deadline_exceeded"


class WorkerLost(ServerError):
    code = "worker_lost"
    retryable = True


class GenerationFailed(ServerError):
    code = "generation_failed"


class OutOfMemory(GenerationFailed):
    code = "out_of_memory"


class Cancelled(ServerError):
    code = "cancelled"


def from_code(code: str, message: str) -> ServerError:
    """Rebuild the error that a worker reported; an unknown code is a plain `GenerationFailed`."""
    kinds: dict[str, type[ServerError]] = {
        kind.code: kind
        for kind in (Overloaded, NotReady, DeadlineExceeded, WorkerLost, GenerationFailed, OutOfMemory)
    }
    return kinds.get(code, GenerationFailed)(message)
