"""The door: who asks, by the key in a request's headers, and which routes anybody may use.

A key comes as `Authorization: Bearer KEY` (OpenAI, Replicate, Hugging Face), `Key KEY` (fal), `Token KEY`
(Replicate's older clients), as the password of `Basic` (AUTOMATIC1111), or as `x-key` or `x-api-key`; every
dialect takes every way. It is never taken from an address, which ends up in logs and histories.
"""

import base64
import binascii
import time
from dataclasses import dataclass, field
from typing import Final

from fastapi import Request
from starlette.datastructures import Headers

from server.caller import Caller
from server.errors import InvalidApiKey
from server.http.exchange import exchange_of
from server.keys import KeysFile
from server.quotas import Quotas

# Every other route asks for a key. Probes come from machines without one, and pages are read before one is
# typed in; files and streams have names that nobody guesses, and are fetched by clients that send no key.
OPEN_ROUTES: Final = frozenset(
    {
        "/",
        "/playground/{name}",
        "/livez",
        "/readyz",
        "/health-check",
        "/docs",
        "/openapi.json",
        "/files/{name}",
        "/v1/files/stream/{name}",
        "/.well-known/jwks.json",
    }
)
SCHEMES: Final = ("bearer", "key", "token")
KEY_HEADERS: Final = ("x-key", "x-api-key")
CHALLENGE: Final = 'Bearer realm="schnell-server"'
HOW: Final = "send it as Authorization: Bearer KEY"


@dataclass(frozen=True, slots=True)
class Door:
    """Without a file of keys anybody may come in."""

    keys: KeysFile | None = None
    quotas: Quotas = field(default_factory=Quotas)

    def caller(self, headers: Headers) -> Caller:
        """Return who sent these headers; raises `InvalidApiKey`."""
        if self.keys is None:
            return Caller(None, self.quotas)
        secret = _secret(headers)
        if not secret:
            raise InvalidApiKey(f"there is no API key in the request; {HOW}")
        key = self.keys.find(secret.encode("latin-1"))
        if key is None:
            raise InvalidApiKey("the API key is not one of this server's, or no longer")
        return Caller(key, self.quotas)

    def charge(self, name: str, device_s: float) -> None:
        """Count what a picture took for the key of this name; there is none where anybody may come in."""
        if name:
            self.quotas.charge(name, device_s, time.time())


def authenticate(request: Request) -> None:
    """Note who asks before a route is run; raises `InvalidApiKey` on routes that are not for anybody."""
    if request.scope["route"].path in OPEN_ROUTES:
        return
    exchange = exchange_of(request)
    door: Door = request.app.state.door
    try:
        exchange.caller = door.caller(request.headers)
    except InvalidApiKey:
        exchange.headers["WWW-Authenticate"] = CHALLENGE
        raise
    if exchange.caller.name:
        exchange.note["key"] = exchange.caller.name


def _secret(headers: Headers) -> str:
    """Return the key that a client sent, empty where there is none."""
    scheme, _, credentials = headers.get("authorization", "").strip().partition(" ")
    match scheme.lower():
        case "":
            return next((headers[name].strip() for name in KEY_HEADERS if name in headers), "")
        case "basic":
            return _password(credentials)
        case known if known in SCHEMES:
            return credentials.strip()
    return ""


def _password(credentials: str) -> str:
    try:
        decoded = base64.b64decode(credentials.strip(), validate=True)
    except (binascii.Error, ValueError):
        return ""
    return decoded.partition(b":")[2].decode("latin-1")
