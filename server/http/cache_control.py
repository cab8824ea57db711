"""What a client asks for in `Cache-Control` (RFC 9111), and what it is told in `Cache-Status` (RFC 9211)."""

from typing import Any, Final

from fastapi import Request

from server.generation import GenerationResult
from server.reuse import Reuse

CACHE: Final = "schnell-server"
CACHE_PARAMETER: Final[dict[str, Any]] = {
    "name": "Cache-Control",
    "in": "header",
    "schema": {"type": "string"},
    "description": "no-cache: make the picture anew and keep it; no-store: make it anew and keep nothing",
}


def reuse_of(http: Request, *, seeded: bool) -> Reuse:
    """Return what the pictures of this request may have to do with those of others.

    `no-cache` is a run of its own that others may have, `no-store` one that they may not. Where the client
    chose no seed nobody can ask for the same picture. Other directives say nothing here.
    """
    sent = ",".join(http.headers.getlist("cache-control")).lower()
    directives = {each.strip() for each in sent.split(",")}
    if "no-store" in directives or not seeded:
        return Reuse.NEVER
    return Reuse.FRESH if "no-cache" in directives else Reuse.ALLOWED


def cache_status(result: GenerationResult, reuse: Reuse, *, seeded: bool) -> str:
    """Return where the pictures came from, as one member of a `Cache-Status` list.

    `hit`: all were finished. `collapsed`: the others were being made for another request. Else `fwd` says
    why pictures were made: `bypass` without a seed, `request` as the client asked for it, `partial` when
    some were there, `miss` when none was.
    """
    if reuse is not Reuse.ALLOWED:
        return f"{CACHE}; fwd={'request' if seeded else 'bypass'}"
    images = len(result.images)
    if result.cached == images:
        return f"{CACHE}; hit"
    forwarded = f"{CACHE}; fwd={'partial' if result.cached else 'miss'}"
    return f"{forwarded}; collapsed" if result.cached + result.joined == images else forwarded
