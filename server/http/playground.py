"""The page at `/`, where people make pictures: its files, read once, and what a browser may do with them.

The page is plain HTML, CSS and JavaScript modules in the folder beside this file, without a build step. It
is a client of the native API like any other, so this knows nothing of pictures. Cog's index has the same
address: `server/http/cog.py` gives the page to those who would rather read HTML.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response

from server.errors import NotFound
from server.http.errors import render_error, route_class

FOLDER: Final = Path(__file__).with_name("playground")
INDEX: Final = "index.html"
DOCS_LINK: Final = re.compile(rb"<!-- docs -->.*?<!-- /docs -->\s*", re.DOTALL)
MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Pictures come as data: in events and are shown as blob:; nothing else is loaded from anywhere but here.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
HEADERS: Final = {
    "Cache-Control": "no-cache",  # kept, and asked for again by its tag: a new server may have a new page
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page, and the tag by which a browser asks whether it is still the same."""

    content: bytes
    media_type: str

    @property
    def tag(self) -> str:
        return f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'


@dataclass(frozen=True, slots=True)
class Playground:
    """The files of the page by their names; what is not in it cannot be asked for."""

    files: Mapping[str, PageFile]

    @classmethod
    def read(cls, *, docs: bool) -> "Playground":
        """Read the page; without `docs` it has no link to the documentation, which is on another port."""
        files = {
            path.name: PageFile(path.read_bytes(), MEDIA_TYPES[path.suffix])
            for path in sorted(FOLDER.iterdir())
            if path.suffix in MEDIA_TYPES
        }
        if not docs:
            index = files[INDEX]
            files[INDEX] = PageFile(DOCS_LINK.sub(b"", index.content), index.media_type)
        return cls(files)

    def page(self, http: Request) -> Response:
        """Answer with the page itself."""
        return _answer(http, self.files[INDEX])


def playground_router(playground: Playground) -> APIRouter:
    """Return `/playground/{name}`, the files that the page is made of."""
    router = APIRouter(route_class=route_class(render_error))

    @router.head("/playground/{name}", include_in_schema=False)
    @router.get("/playground/{name}", include_in_schema=False)
    async def get_file(http: Request, name: str) -> Response:
        found = playground.files.get(name)
        if found is None:
            raise NotFound("the page has no such file", field="name")
        return _answer(http, found)

    return router


def _answer(http: Request, file: PageFile) -> Response:
    headers = HEADERS | {"ETag": file.tag}
    sent = http.headers.get("if-none-match", "")
    if file.tag in [each.strip().removeprefix("W/") for each in sent.split(",")]:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
