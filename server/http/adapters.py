"""The adapters of the server under `/v1/loras`: who runs it lists, puts and removes them.

A file is written to the disk as it comes, never held in memory, and gets its name when the workers took it.
"""

import asyncio
import os
from pathlib import Path
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from server.engine import Engine
from server.errors import InvalidRequest, RequestTooLarge, StorageUnavailable, UnsupportedMediaType
from server.generation import ADAPTER_NAME, ADAPTER_NAME_RULE, AdapterInfo
from server.http.body import shown
from server.http.description import described
from server.http.errors import render_error, route_class
from server.http.exchange import ClientGone, exchange_of
from server.http.leniency import names_of

FILE_TYPE: Final = "application/octet-stream"
WRITE_BYTES: Final = 1 << 20
PUTTING: Final[dict[str, Any]] = {
    "responses": described(
        "forbidden",
        "invalid_request",
        "unsupported_media_type",
        "request_too_large",
        "not_ready",
        "worker_lost",
        "storage_unavailable",
    ),
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
}


def adapters_router(engine: Engine) -> APIRouter:
    """Return the routes under `/v1/loras`."""
    router = APIRouter(route_class=route_class(render_error), tags=["native"])

    @router.get("/v1/loras", summary="The adapters", responses=described("not_ready"))
    async def list_adapters() -> Response:
        return _json({"loras": [_shown(engine, each) for each in engine.model.adapters]})

    @router.put("/v1/loras/{name}", summary="Serve an adapter: a safetensors file", **PUTTING)
    async def put_adapter(http: Request, name: str) -> Response:
        _check_caller(http)
        _check_name(engine, name)
        upload = await asyncio.to_thread(engine.adapters.files.begin)
        try:
            await _receive(http, upload, limit_bytes=engine.adapters.max_upload_bytes)
            info = await engine.adapters.put(name, upload)
        finally:
            await asyncio.to_thread(upload.unlink, missing_ok=True)
        exchange_of(http).note["adapter"] = name
        return _json(_shown(engine, info))

    @router.delete(
        "/v1/loras/{name}",
        summary="Serve an adapter no longer",
        responses=described("forbidden", "not_found", "invalid_request", "not_ready", "storage_unavailable"),
    )
    async def delete_adapter(http: Request, name: str) -> Response:
        _check_caller(http)
        await engine.adapters.remove(name)
        exchange_of(http).note["adapter"] = name
        return _json({"name": name, "deleted": True})

    return router


def _check_caller(http: Request) -> None:
    caller = exchange_of(http).caller
    assert caller is not None, "these routes are guarded"
    caller.check_admin()


def _check_name(engine: Engine, name: str) -> None:
    if not ADAPTER_NAME.fullmatch(name) or name in names_of(engine.model):
        raise InvalidRequest(
            f"name is {shown(name)}; allowed: {ADAPTER_NAME_RULE}, and none of the model's names",
            field="name",
        )
    engine.adapters.check_free(name)


async def _receive(http: Request, upload: Path, *, limit_bytes: int) -> None:
    """Write the body to a file, whole and on the disk; raises `RequestTooLarge` and `StorageUnavailable`."""
    media_type = http.headers.get("content-type", FILE_TYPE).partition(";")[0].strip().lower()
    if media_type != FILE_TYPE or http.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType(
            f"content-type is {shown(media_type)}; allowed: {FILE_TYPE} without encoding",
            field="content-type",
        )
    too_large = RequestTooLarge(f"the file is larger than the limit of {limit_bytes} bytes")
    if int(http.headers.get("content-length", 0)) > limit_bytes:  # the parser lets only digits through
        raise too_large
    size_bytes, waiting = 0, bytearray()
    try:
        with upload.open("wb") as file:
            async for chunk in http.stream():
                size_bytes += len(chunk)
                if size_bytes > limit_bytes:
                    raise too_large
                waiting += chunk
                if len(waiting) >= WRITE_BYTES:
                    await asyncio.to_thread(file.write, bytes(waiting))
                    waiting.clear()
            await asyncio.to_thread(file.write, bytes(waiting))
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
    except ClientDisconnect:
        raise ClientGone from None
    except OSError as error:
        raise StorageUnavailable(f"the disk does not take the file: {error.strerror}") from None


def _shown(engine: Engine, info: AdapterInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "digest": info.digest,
        "size_bytes": info.size_bytes,
        "removable": not engine.adapters.files.is_given(info.name),
    }


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
