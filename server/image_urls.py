"""Pictures that clients name by URL, fetched under the rules of webhooks.

Only where the server allows it; never from an address inside, over a connection to the very address that was
checked. No redirects: they could lead there. Bytes and seconds are bounded, and what is fetched at once.
"""

import asyncio
import ssl
from typing import Final

import httpcore

from server import __version__
from server.addresses import Addresses, AddressRefused
from server.errors import InvalidRequest
from server.outbound import URL_RULE, CheckedBackend, check_url, target_of

FETCH_S: Final = 15.0
AT_ONCE: Final = 8
TYPES: Final = ("image/", "application/octet-stream", "binary/octet-stream")
ANSWER_RULE: Final = "an address that answers with a picture"


class ImageUrls:
    """Fetches pictures of at most `limit_bytes`. Without `addresses` the server allows none.

    The time is a class attribute, so that a test can have little of it.
    """

    fetch_s = FETCH_S

    def __init__(self, addresses: Addresses | None, *, limit_bytes: int) -> None:
        self._addresses = addresses
        self.limit_bytes = limit_bytes
        self._turns = asyncio.Semaphore(AT_ONCE)
        # Once: it reads some 140 certificates, which takes 15 ms and would be in everybody's way.
        self._tls = None if addresses is None else ssl.create_default_context()

    def check_allowed(self, *, field: str) -> Addresses:
        """Return which addresses may be asked; raises `InvalidRequest` where no URL is allowed."""
        if self._addresses is None:
            message = f"{field} is a URL; allowed here: the picture itself, since --allow-image-urls is off"
            raise InvalidRequest(message, field=field)
        return self._addresses

    async def fetch(self, url: str, *, field: str) -> bytes:
        """Return what is at `url`; raises `InvalidRequest`. `field` is the client's name for it."""
        addresses = self.check_allowed(field=field)
        parts = await check_url(url, addresses, field=field)
        shown = f"{parts.scheme}://{parts.netloc[:60]}"
        headers = {
            "Host": parts.netloc,
            "Accept": "image/png, image/jpeg, image/webp",
            "Accept-Encoding": "identity",
            "User-Agent": f"schnell-server/{__version__}",
        }
        try:
            async with (
                self._turns,
                asyncio.timeout(self.fetch_s),
                httpcore.AsyncConnectionPool(
                    ssl_context=self._tls, network_backend=CheckedBackend(addresses)
                ) as pool,
                pool.stream("GET", target_of(parts), headers=list(headers.items())) as answer,
            ):
                _check(answer, shown, field)
                return await self._read(answer, shown, field)
        except AddressRefused as refused:
            message = f"{field} is at {shown}: {refused}; allowed: {URL_RULE}"
            raise InvalidRequest(message, field=field) from None
        except TimeoutError:
            reason = f"did not answer within {self.fetch_s:g} s"
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError):
            reason = "cannot be reached"
        raise InvalidRequest(f"{field} is at {shown}, which {reason}; allowed: {ANSWER_RULE}", field=field)

    async def _read(self, answer: httpcore.Response, shown: str, field: str) -> bytes:
        data = bytearray()
        async for chunk in answer.aiter_stream():
            data += chunk
            if len(data) > self.limit_bytes:
                message = f"{field} at {shown} is longer than {self.limit_bytes} bytes; allowed: at most that"
                raise InvalidRequest(message, field=field)
        return bytes(data)


def _check(answer: httpcore.Response, shown: str, field: str) -> None:
    """Raise `InvalidRequest` for an answer that is no picture."""
    headers = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
    media_type = headers.get(b"content-type", "image/").strip().lower()
    if answer.status != 200:
        reason = f"answers with status {answer.status}" + (
            ", a redirect" if 300 <= answer.status < 400 else ""
        )
    elif not media_type.startswith(TYPES):
        reason = f'answers with "{media_type[:60].encode("unicode_escape").decode()}"'
    else:
        return
    raise InvalidRequest(f"{field} is at {shown}, which {reason}; allowed: {ANSWER_RULE}", field=field)
