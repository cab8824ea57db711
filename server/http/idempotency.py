"""The `Idempotency-Key` header of POST, after draft-ietf-httpapi-idempotency-key-header-07.

Where the draft has a concurrent retry answered with 409, it waits here and gets the answer of the first.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from fastapi import Request

from server.errors import MalformedHeader
from server.generation import GenerationResult
from server.http.body import RequestBody, shown
from server.http.exchange import exchange_of
from server.idempotency import HEADER, Answers

MAX_KEY_CHARS: Final = 255
# A string of RFC 8941, which the draft asks for, or the bare characters that most clients send.
QUOTED: Final = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])+)"')
BARE: Final = re.compile(r"[!#-+\--:<-\[\]-~]+")
KEY_RULE: Final = f"one key of 1 to {MAX_KEY_CHARS} printable ASCII characters, bare or as a quoted string"
KEY_PARAMETER: Final[dict[str, Any]] = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": {"type": "string"},
    "description": f"{KEY_RULE}; a retry with the same key gets the same answer for 24 hours",
}


@dataclass(frozen=True, slots=True)
class Once:
    """What a request is for its idempotency key: `body`, answered in `form`, a media type or a dialect's."""

    answers: Answers
    body: RequestBody
    form: str

    async def answer(
        self, http: Request, make: Callable[[], Awaitable[GenerationResult]]
    ) -> GenerationResult:
        """Return the answer of the first request with this key; without a key what `make` returns.

        Raises `MalformedHeader`, `KeyReused`, or what `make` raises.
        """
        key = idempotency_key(http)
        if key is None:
            return await make()
        caller = exchange_of(http).caller
        assert caller is not None, "routes that make pictures are guarded"
        scope = _digest(caller.name, "" if caller.name else http.headers.get("authorization", ""))
        fingerprint = _digest(http.url.path, self.form, self.body.model_dump_json())
        answer = await self.answers.once((scope, key), fingerprint, make)
        if answer.replayed:
            exchange_of(http).headers["Idempotent-Replayed"] = "true"
        return answer.result


def idempotency_key(http: Request) -> str | None:
    """Return the key that the client sent, if it sent one; raises `MalformedHeader`."""
    sent = http.headers.getlist(HEADER)
    if not sent:
        return None
    text = sent[0].strip()
    quoted = QUOTED.fullmatch(text)
    if len(sent) > 1 or not (quoted or BARE.fullmatch(text)):
        raise MalformedHeader(f"{HEADER} is {shown(', '.join(sent))}; allowed: {KEY_RULE}", field=HEADER)
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else text
    if len(key) > MAX_KEY_CHARS:
        raise MalformedHeader(f"{HEADER} has {len(key)} characters; allowed: {KEY_RULE}", field=HEADER)
    return key


def _digest(*parts: str) -> bytes:
    """API keys and prompts are compared and not kept."""
    return hashlib.sha256(msgspec.json.encode(parts)).digest()
