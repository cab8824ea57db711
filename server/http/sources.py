"""What a request starts from: the pictures that a client sent become the `Source` of its request.

Each dialect says in `Start` what it was given and under which names; here the pictures are found (in the
request, in our own files, at a URL) and decoded in another process, and the request gets the size of what
came of it. Messages name fields and never carry a picture.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from fastapi import Request

from server.decoders import Decoders
from server.decoding import Decode, Fit, Painted, Refused, Sent
from server.errors import InvalidRequest
from server.generation import MIN_STRENGTH, GenerationRequest, Source
from server.geometry import Borders
from server.http.body import shown
from server.http.calls import check_limits, unless_client_leaves
from server.http.exchange import exchange_of
from server.http.input_pictures import BASE64_RULE, PICTURE_RULE, InputPicture
from server.http.own_files import OwnFiles
from server.image_urls import ImageUrls

DEFAULT_STRENGTH: Final = 0.6  # that of diffusers' FluxImg2ImgPipeline
REPAINT: Final = 1.0  # where nothing was there before
STRENGTH_RULE: Final = (
    f"a number from {MIN_STRENGTH} to 1: how much of the picture is drawn anew, {DEFAULT_STRENGTH} if absent"
)
DATA_URI: Final = re.compile(r"data:[\w.+/-]*(?:;[\w.+-]+=[\w.+-]*)*;base64,", re.IGNORECASE)
WEB: Final = ("http://", "https://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What the fields are called in a dialect."""

    image: str = "image"
    mask: str = "mask_image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a client said of the picture that its request starts from.

    Without `strength` it is the server's default, or `mask_strength` where there is a mask. `width` and
    `height` are those that were asked for. With `bare` base64 may come without `data:` before it.
    """

    image: InputPicture
    mask: InputPicture | None = None
    strength: float | None = None
    mask_strength: float = DEFAULT_STRENGTH
    borders: Borders | None = None
    preserve: bool | None = None
    width: int | None = None
    height: int | None = None
    fit: Fit = Fit.STRETCH
    painted: Painted = Painted.LIGHT
    clear_is_mask: bool = False
    blur: int = 0
    bare: bool = False
    names: Names = field(default_factory=Names)


def check_without_image(given: Mapping[str, object], *, image: str = "image") -> None:
    """Raise `InvalidRequest` for the first of these fields that has a value: it needs `image`."""
    for name, value in given.items():
        if value is not None:
            raise InvalidRequest(f"{name} is given without {image}; allowed: only with {image}", field=name)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where pictures come from, and who decodes them."""

    decoders: Decoders
    urls: ImageUrls
    own: OwnFiles

    async def begin(self, http: Request, request: GenerationRequest, start: Start) -> GenerationRequest:
        """Return the request with its source, in the size of that; raises `InvalidRequest`.

        Raises `RateLimited` or `QuotaExceeded` for who may not ask now, `Overloaded` or `NotReady` where it
        cannot be decoded now, and `ClientGone`, when it is decoded no further. The pictures are let go.
        """
        check_limits(http)
        return await unless_client_leaves(http, self._begun(http, request, start))

    async def _begun(self, http: Request, request: GenerationRequest, start: Start) -> GenerationRequest:
        names, mask = start.names, None
        image = await self._sent(http, start.image, names.image, bare=start.bare)
        if start.mask is not None:
            mask = await self._sent(http, start.mask, names.mask, bare=start.bare)
            self._check_together(image, mask, names)
        asked = Decode(
            image=image,
            mask=mask,
            painted=start.painted,
            clear_is_mask=start.clear_is_mask,
            width=start.width,
            height=start.height,
            fit=start.fit,
            borders=start.borders,
            preserve=start.preserve is not False,
            blur=start.blur,
        )
        answer = await self.decoders.decode(asked)
        if isinstance(answer, Refused):
            name = names.image if answer.about == "image" else names.mask
            raise InvalidRequest(f"{name} is {answer.found}; allowed: {answer.allowed}", field=name)
        for picture in filter(None, (start.image, start.mask)):
            await asyncio.to_thread(picture.let_go)  # the digest of 30 MB takes as many milliseconds
        exchange_of(http).give_room()
        default = DEFAULT_STRENGTH if answer.mask is None else start.mask_strength
        source = Source(
            pixels=answer.pixels,
            strength=start.strength or (default if start.borders is None else REPAINT),
            mask=answer.mask,
            blend=answer.blend,
        )
        return msgspec.structs.replace(request, width=answer.width, height=answer.height, source=source)

    def _check_together(self, image: Sent, mask: Sent, names: Names) -> None:
        """Raise `InvalidRequest` for what no body would hold: of two URLs each may be as long as one."""
        size_bytes = len(image.data) + len(mask.data)
        if size_bytes > self.urls.limit_bytes:
            raise InvalidRequest(
                f"{names.mask} and {names.image} are {size_bytes} bytes together; "
                f"allowed: at most {self.urls.limit_bytes}",
                field=names.mask,
            )

    async def _sent(self, http: Request, picture: InputPicture, name: str, *, bare: bool) -> Sent:
        content = picture.content
        assert content is not None, "it has not been decoded yet"
        if isinstance(content, bytes):
            return Sent(data=memoryview(content), base64=False)
        if content.startswith(WEB):
            return Sent(data=memoryview(await self._at(http, content, name)), base64=False)
        head = DATA_URI.match(content[:200])
        if (head is None and (not bare or content.startswith("data:"))) or not content.isascii():
            rule = BASE64_RULE if bare else PICTURE_RULE
            raise InvalidRequest(f"{name} is {shown(content)}; allowed: {rule}", field=name)
        return Sent(data=memoryview(content.encode())[head.end() if head else 0 :], base64=True)

    async def _at(self, http: Request, url: str, name: str) -> bytes:
        """Return what is at a URL; one that is refused whatever is there takes no room from others."""
        ours = self.own.has_place(http, url)
        if not ours:
            self.urls.check_allowed(field=name)
        await exchange_of(http).take_room(self.urls.limit_bytes)
        if ours:
            return await self.own.read(http, url, field=name)
        return await self.urls.fetch(url, field=name)
