"""Calls to URLs that clients name: only to addresses that were checked, whatever their names say.

For webhooks and for pictures by URL; which addresses may be called is `server.addresses`.
"""

import asyncio
from collections.abc import Iterable
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httpcore

from server.addresses import Addresses, AddressRefused
from server.errors import InvalidRequest

RESOLVE_S: Final = 2.0
MAX_URL_CHARS: Final = 2048
URL_RULE: Final = "an http or https URL of a public host, without user and password"


async def check_url(url: str, addresses: Addresses, *, field: str) -> SplitResult:
    """Return the parts of a URL; raises `InvalidRequest` for one that will never be called.

    `field` is the client's name for it. A name that does not resolve at the moment may do so later.
    """
    shown = url[:60].encode("unicode_escape").decode("ascii")
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise InvalidRequest(f'{field} is "{shown}"; allowed: {URL_RULE}', field=field) from None
    plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= MAX_URL_CHARS
    if not plain or parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise InvalidRequest(f'{field} is "{shown}"; allowed: {URL_RULE}', field=field)
    try:
        async with asyncio.timeout(RESOLVE_S):
            await addresses.of(parts.hostname, port)
    except AddressRefused as refused:
        message = f'{field} is "{shown}": {refused}; allowed: {URL_RULE}'
        raise InvalidRequest(message, field=field) from None
    except OSError:
        pass
    return parts


def target_of(url: SplitResult) -> httpcore.URL:
    """Return what to call; httpcore's own reading of a URL loses what follows a semicolon in its path."""
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    return httpcore.URL(scheme=url.scheme, host=url.hostname or "", port=url.port, target=target)


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, whatever a name resolves to a moment later.

    TLS is still verified for the name: it is the address of the connection alone that is pinned.
    """

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        error: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await self._addresses.of(host, port):
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as failed:
                error = failed
        raise error

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)
