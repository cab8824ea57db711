"""For those who run the server: liveness, readiness, status, metrics, and documentation without a CDN.

Metrics and documentation move to the port for operations where there is one; probes and status are on both.
"""

import time
from pathlib import Path
from typing import Final

import msgspec
from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from server.engine import Engine
from server.errors import NotReady
from server.http.description import described, document
from server.http.errors import render_error, route_class
from server.http.status import Status, status_of
from server.metrics import Metrics

DOCS_PAGE: Final = Path(__file__).with_name("docs.html")
TEXT_CONTENT: Final[dict[str, object]] = {"text/plain": {}}
DOCS_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)


def probes_router(engine: Engine, metrics: Metrics) -> APIRouter:
    """Return `/livez`, `/readyz` and `/v1/status`."""
    began_s = time.monotonic()
    router = APIRouter(route_class=route_class(render_error), tags=["operations"])

    @router.head("/livez", include_in_schema=False)
    @router.get("/livez", summary="The process answers", response_class=PlainTextResponse)
    async def livez() -> Response:
        return Response("ok\n", media_type="text/plain")

    @router.head("/readyz", include_in_schema=False)
    @router.get(
        "/readyz", summary="A worker takes requests", responses=described("not_ready", ok=TEXT_CONTENT)
    )
    async def readyz() -> Response:
        if not engine.ready:
            raise NotReady("no worker takes requests: loading, draining or restarting", retry_after_s=1)
        return Response("ok\n", media_type="text/plain")

    @router.get("/v1/status", summary="What the server is doing", responses={200: {"model": Status}})
    async def status() -> Response:
        now = status_of(engine, metrics, uptime_s=time.monotonic() - began_s)
        return Response(msgspec.json.encode(now), media_type="application/json")

    return router


def ops_router(metrics: Metrics, api: FastAPI) -> APIRouter:
    """Return `/metrics`, and `/docs` of the application `api`."""
    router = APIRouter(route_class=route_class(render_error), tags=["operations"])

    @router.get("/metrics", summary="Prometheus metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        return Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        headers = {"Content-Security-Policy": DOCS_POLICY}
        return Response(DOCS_PAGE.read_bytes(), media_type="text/html", headers=headers)

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        described = document(api) | {"servers": [{"url": request.scope.get("root_path") or "/"}]}
        if api.state.door.keys is not None:
            schemes = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
            described["components"] |= schemes
            described["security"] = [{"key": []}]
        return Response(msgspec.json.encode(described), media_type="application/json")

    return router
