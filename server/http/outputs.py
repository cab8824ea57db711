"""How the pictures of a job are given: as `data:` addresses inside the answer, or as URLs of `/files`.

Replicate's clients make a file only of `https:` and `data:` addresses, so over plain HTTP the picture itself
is the address, unless a setting says otherwise. Lists and webhooks always name pictures by URL: they would be
of any length.
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from server.errors import NotFound
from server.http.description import described
from server.http.errors import render_error, route_class
from server.http.pictures import Picture
from server.job import Job
from server.picture_files import EXTENSIONS, PictureFiles

Rule = Literal["auto", "data", "url"]


@dataclass(frozen=True, slots=True)
class Outputs:
    """The rule of a server; `public_url` is where clients reach it, if not where they say."""

    files: PictureFiles
    rule: Rule = "auto"
    public_url: str = ""

    def base_url(self, http: Request) -> str:
        """Return the address of the server as its clients know it, without a slash at its end."""
        return (self.public_url or str(http.base_url)).rstrip("/")

    def by_url(self, base_url: str) -> bool:
        """Return whether the pictures of an answer at `base_url` are given by URL."""
        return self.rule == "url" or (self.rule == "auto" and base_url.startswith("https:"))

    def urls(self, job: Job, base_url: str) -> list[str]:
        """Return the URLs of a job's pictures."""
        return [f"{base_url}/files/{image.name}" for image in job.images]

    async def of(self, job: Job, base_url: str) -> list[str] | list[Picture] | None:
        """Return a job's pictures for an answer at `base_url`; None when it has none, or has them no more."""
        if not job.images:
            return None
        if self.by_url(base_url):
            return self.urls(job, base_url)
        found = await asyncio.to_thread(lambda: [self.files.read(image.name) for image in job.images])
        pictures = [Picture(each.data, prefix=f"data:{each.content_type};base64,") for each in found if each]
        return pictures if len(pictures) == len(job.images) else None


def files_router(files: PictureFiles) -> APIRouter:
    """Return `/files/{name}`, which is for everybody who knows a name."""
    router = APIRouter(route_class=route_class(render_error), tags=["files"])
    pictures: dict[str, Any] = {content_type: {} for content_type in EXTENSIONS}

    @router.head("/files/{name}", include_in_schema=False)
    @router.get("/files/{name}", summary="A picture of a job", responses=described("not_found", ok=pictures))
    async def get_file(name: str) -> Response:
        found = await asyncio.to_thread(files.read, name)
        if found is None:
            raise NotFound("there is no such file; it may have expired", field="name")
        headers = {"Cache-Control": f"public, max-age={int(found.left_s)}, immutable"}
        return Response(found.data, media_type=found.content_type, headers=headers)

    return router
