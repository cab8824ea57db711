"""Files of this server that a client names by URL: read here, with no call to anywhere.

Pictures of jobs at `/files`, for whoever knows a name, and at `/v1/files` what the client has uploaded,
which Replicate's clients do before they ask for a prediction.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response

from server.errors import InvalidRequest, NotFound, StorageUnavailable
from server.http.body import check_media_type
from server.http.description import BODY_ERRORS, described
from server.http.errors import Render, route_class
from server.http.exchange import exchange_of, key_of
from server.http.form import FORM, read_form
from server.http.input_pictures import TYPES
from server.http.outputs import Outputs
from server.uploads import Upload, Uploads

PREFIXES: Final = ("/v1", "/replicate/v1", "/v1/v1")  # of Replicate's API
UPLOADED: Final = described(*BODY_ERRORS, "storage_unavailable")
UPLOADED[201] = {**UPLOADED.pop(200), "description": "The file"}
UPLOAD: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            FORM: {
                "schema": {
                    "type": "object",
                    "required": ["content"],
                    "properties": {
                        "content": {"type": "string", "format": "binary", "description": "the file"}
                    },
                },
                "example": {"content": "a picture"},
            }
        },
    }
}
FOUND: Final = described("not_found")
GONE: Final = described("not_found")
GONE[204] = {"description": "It is removed"}
del GONE[200]


@dataclass(frozen=True, slots=True)
class OwnFiles:
    """Where URLs of this server lead."""

    outputs: Outputs
    uploads: Uploads

    def has_place(self, http: Request, url: str) -> bool:
        """Return whether a URL is one of this server's files, whether there is such a file or not."""
        base_url = self.outputs.base_url(http)
        return url.startswith(f"{base_url}/files/") or self._upload_at(url, base_url) is not None

    async def read(self, http: Request, url: str, *, field: str) -> bytes:
        """Return what is at a URL of this server; raises `InvalidRequest` for what is not there.

        `field` is the client's name for the URL.
        """
        base_url, found = self.outputs.base_url(http), None
        if (name := url.removeprefix(f"{base_url}/files/")) != url:
            picture = await asyncio.to_thread(self.outputs.files.read, name)
            found = None if picture is None else picture.data
        elif (id := self._upload_at(url, base_url)) is not None:
            upload = await asyncio.to_thread(self.uploads.read, key_of(http), id)
            found = None if upload is None else upload.data
        if found is None:
            message = f"{field} is the URL of a file that is not there; allowed: one that has not expired"
            raise InvalidRequest(message, field=field)
        return found

    @staticmethod
    def _upload_at(url: str, base_url: str) -> str | None:
        names: Iterator[str] = (url.removeprefix(f"{base_url}{prefix}/files/") for prefix in PREFIXES)
        return next((name for name in names if name != url), None)


def uploads_router(own: OwnFiles, render: Render, prefix: str) -> APIRouter:
    """Return the routes of Replicate's files under `prefix`."""
    router = APIRouter(
        prefix=prefix,
        route_class=route_class(render),
        include_in_schema=prefix == PREFIXES[0],
        tags=["Replicate"],
    )

    @router.post("/files", summary="Upload a file", responses=UPLOADED, openapi_extra=UPLOAD)
    async def create_file(http: Request) -> Response:
        check_media_type(http, FORM)
        parts = dict(await read_form(http))
        content = parts.get("content")
        if not isinstance(content, bytes):
            message = "content is missing; it is a file"
            raise InvalidRequest(message, field="content", missing=True)
        try:
            upload = await asyncio.to_thread(own.uploads.keep, key_of(http), content)
        except OSError as fault:
            raise StorageUnavailable("files cannot be kept at the moment", retry_after_s=5) from fault
        exchange_of(http).give_room()
        return await answer(http, upload, 201)

    async def answer(http: Request, upload: Upload, status: int) -> Response:
        url = f"{own.outputs.base_url(http)}{prefix}/files/{upload.id}"
        about = await asyncio.to_thread(_about, upload, url)  # the digest of 30 MB takes as many milliseconds
        return Response(msgspec.json.encode(about), status, media_type="application/json")

    @router.get("/files/{file_id}", summary="What is known of a file", responses=FOUND)
    async def get_file(http: Request, file_id: str) -> Response:
        upload = await asyncio.to_thread(own.uploads.read, key_of(http), file_id)
        if upload is None:
            raise NotFound("there is no such file; it may have expired", field="file_id")
        return await answer(http, upload, 200)

    @router.delete("/files/{file_id}", summary="Remove a file", status_code=204, responses=GONE)
    async def delete_file(http: Request, file_id: str) -> Response:
        if not await asyncio.to_thread(own.uploads.drop, key_of(http), file_id):
            raise NotFound("there is no such file; it may have expired", field="file_id")
        return Response(status_code=204)

    return router


def _about(upload: Upload, url: str) -> dict[str, Any]:
    """Return what Replicate's clients want to know of a file."""
    digest = hashlib.sha256(upload.data).hexdigest()
    kind = next((TYPES[head] for head in TYPES if upload.data.startswith(head)), "application/octet-stream")
    return {
        "id": upload.id,
        "name": upload.id,
        "content_type": kind,
        "size": len(upload.data),
        "etag": digest,
        "checksums": {"sha256": digest},
        "metadata": {},
        "created_at": _iso(upload.created_s),
        "expires_at": _iso(upload.expires_s),
        "urls": {"get": url},
    }


def _iso(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
