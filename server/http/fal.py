"""fal's API: an app run at once at `/fal/run`, the queue at `/fal/queue`, and both through `/api/fal/proxy`.

A run keeps nothing, so its pictures are `data:` addresses; where the server's setting wants URLs, it is a job
that is waited for. `/stream` of an app is the same with previews on the way.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from server.engine import Engine
from server.errors import DeadlineExceeded, MalformedHeader
from server.generation import GenerationRequest, GenerationResult
from server.http.body import json_schema, read_json, shown
from server.http.calls import finished_job, generate
from server.http.description import BODY_ERRORS, ENGINE_ERRORS, described
from server.http.errors import route_class
from server.http.exchange import exchange_of
from server.http.fal_app import (
    EXAMPLE,
    HEADER_PARAMETERS,
    STATUSES,
    Input,
    check_app,
    name_request,
    output_of,
    priority_of,
    render_error,
    start_of,
    start_timeout_s,
    to_request,
)
from server.http.fal_queue import Queue, queue_routers
from server.http.fal_stream import PREVIEWS, FalScript
from server.http.leniency import Leniency
from server.http.outputs import Outputs
from server.http.pictures import Picture, pictures_response
from server.http.sources import Sources
from server.http.story import event_response
from server.jobs import Jobs
from server.roster import UNWATCHED, Watch
from server.signatures import Signatures

TARGET: Final = "x-fal-target-url"
TARGETS: Final = {"fal.run": "/fal/run", "queue.fal.run": "/fal/queue"}
KEYS_S: Final = 3600  # that receivers of webhooks may keep the key
TARGET_RULE: Final = f"an https URL of {' or '.join(TARGETS)}"
ERRORS: Final = (*BODY_ERRORS, *ENGINE_ERRORS, "malformed_header", "not_found", "storage_unavailable")
BODY: Final = json_schema(Input, EXAMPLE) | {"parameters": HEADER_PARAMETERS}
RUN: Final[dict[str, Any]] = {
    "responses": described(*ERRORS, ok_text="The output", statuses=STATUSES),
    "openapi_extra": BODY,
}
STREAM: Final[dict[str, Any]] = {
    "responses": described(
        *ERRORS,
        ok={"text/event-stream": {}},
        ok_text="Previews, then the output",
        statuses=STATUSES,
    ),
    "openapi_extra": BODY,
}
PROXY: Final[dict[str, Any]] = {
    "summary": "What fal's JavaScript client would send to fal.run or queue.fal.run",
    "responses": described("malformed_header", "not_found", ok_text="As at the path of the target")
    | {"default": {"description": "As at the path of the target"}},
    "openapi_extra": {
        "parameters": [
            {
                "name": TARGET,
                "in": "header",
                "required": True,
                "schema": {"type": "string", "pattern": r"^https://(queue\.)?fal\.run/"},
                "example": "https://queue.fal.run/fal-ai/flux/schnell",
                "description": TARGET_RULE,
            }
        ]
    },
}


def fal_routers(
    engine: Engine, jobs: Jobs, outputs: Outputs, sources: Sources, leniency: Leniency
) -> list[APIRouter]:
    """Return all routes of the dialect."""
    queue = Queue(engine, jobs, outputs, sources, leniency)
    direct = [_run_router(engine, jobs, queue, outputs, sources, leniency), *queue_routers(queue, outputs)]
    routes = [route for router in direct for route in router.routes]
    proxy = _proxy_router(Router(routes, redirect_slashes=False))
    return [*direct, proxy, _keys_router(jobs.webhooks.signatures)]


def _run_router(
    engine: Engine, jobs: Jobs, queue: Queue, outputs: Outputs, sources: Sources, leniency: Leniency
) -> APIRouter:
    router = APIRouter(
        prefix="/fal/run",
        route_class=route_class(render_error),
        dependencies=[Depends(name_request)],
        tags=["fal"],
    )

    @router.post("/{owner}/{alias}/{variant}/stream", summary="Make pictures, told in events", **STREAM)
    async def stream(http: Request, owner: str, alias: str, variant: str) -> Response:
        return await streamed(http, f"{owner}/{alias}/{variant}")

    @router.post("/{owner}/{alias}/{variant}/image-to-image", include_in_schema=False)
    async def run_long(http: Request, owner: str, alias: str, variant: str) -> Response:
        return await ran(http, f"{owner}/{alias}/{variant}/image-to-image")

    @router.post("/{owner}/{alias}/stream", include_in_schema=False)
    async def stream_short(http: Request, owner: str, alias: str) -> Response:
        return await streamed(http, f"{owner}/{alias}")

    @router.post("/{owner}/{alias}/{variant}", summary="Make pictures", **RUN)
    async def run(http: Request, owner: str, alias: str, variant: str) -> Response:
        return await ran(http, f"{owner}/{alias}/{variant}")

    @router.post("/{owner}/{alias}", include_in_schema=False)
    async def run_short(http: Request, owner: str, alias: str) -> Response:
        return await ran(http, f"{owner}/{alias}")

    async def ran(http: Request, app: str) -> Response:
        sent, request = await asked(http, app)
        return pictures_response(await made(http, app, sent, request, UNWATCHED))

    async def streamed(http: Request, app: str) -> Response:
        sent, request = await asked(http, app, previews=PREVIEWS)
        return await event_response(
            http, FalScript(request), lambda watch: made(http, app, sent, request, watch)
        )

    async def asked(http: Request, app: str, *, previews: int = 0) -> tuple[Input, GenerationRequest]:
        sent = await read_json(http, Input)
        check_app(app, engine.model, leniency, http)
        request_id, priority = exchange_of(http).request_id, priority_of(http)
        request = to_request(
            sent, engine.model, leniency, id=request_id, priority=priority, previews=previews
        )
        if start := start_of(sent):
            request = await sources.begin(http, request, start)
        return sent, request

    async def made(
        http: Request, app: str, sent: Input, request: GenerationRequest, watch: Watch
    ) -> dict[str, Any]:
        """Return the output of a request that is waited for, and that ends when its client leaves."""
        base_url = outputs.base_url(http)
        if outputs.by_url(base_url) and not sent.sync_mode:
            job = await queue.submit(http, app, sent, request, listen=watch.listen)
            return await queue.output(await finished_job(jobs, http, job), base_url)

        async def make(watch: Watch) -> GenerationResult:
            return await generate(engine, http, request, seeded=sent.seed is not None, watch=watch)

        result = await begun_within(start_timeout_s(http), make, watch)
        pictures = [Picture(each.data, prefix=f"data:{each.content_type};base64,") for each in result.images]
        return output_of(request, result.images, pictures, result.timings)

    return router


async def begun_within(
    timeout_s: float | None, make: Callable[[Watch], Awaitable[GenerationResult]], watch: Watch
) -> GenerationResult:
    """Return what `make` makes; raises `DeadlineExceeded` if a worker has not begun with it in time."""

    def began() -> None:
        if not limit.expired():
            limit.reschedule(None)

    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await make(replace(watch, began=began))
    except TimeoutError:
        message = f"the request did not begin within the {timeout_s:g} s that were asked for"
        raise DeadlineExceeded(message) from None


def _keys_router(signatures: Signatures) -> APIRouter:
    """Return the route of the key with which receivers of webhooks verify fal's signature."""
    router = APIRouter(route_class=route_class(render_error), tags=["fal"])

    @router.get("/.well-known/jwks.json", summary="The public key of webhooks", responses=described())
    async def get_keys() -> Response:
        content = msgspec.json.encode(signatures.jwks())
        headers = {"Cache-Control": f"public, max-age={KEYS_S}"}
        return Response(content, media_type="application/json", headers=headers)

    return router


def _proxy_router(direct: ASGIApp) -> APIRouter:
    """Return the one route that stands for all the others, for clients that name the real one in a header.

    It is routed inside: whatever the header says, nothing is fetched from anywhere.
    """
    router = APIRouter(route_class=route_class(render_error), tags=["fal"])

    @router.get("/api/fal/proxy", **PROXY)
    @router.post("/api/fal/proxy", **PROXY)
    @router.put("/api/fal/proxy", **PROXY)
    async def proxy(http: Request) -> Response:
        path, query = target_of(http)
        return _Elsewhere(direct, path, query)

    return router


class _Elsewhere(Response):
    """The answer that `app` gives to the same request at another path."""

    def __init__(self, app: ASGIApp, path: str, query: str) -> None:
        super().__init__()
        self._app = app
        self._path = path
        self._query = query

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("root_path", "") + unquote(self._path)
        scope.update(path=path, raw_path=self._path.encode(), query_string=self._query.encode())
        await self._app(scope, receive, send)


def target_of(http: Request) -> tuple[str, str]:
    """Return the path here and the query of what a proxied request is meant for; raises `MalformedHeader`."""
    sent = http.headers.get(TARGET)
    if sent is None:
        raise MalformedHeader(f"{TARGET} is missing; it is {TARGET_RULE}", field=TARGET)
    wrong = MalformedHeader(f"{TARGET} is {shown(sent)}; allowed: {TARGET_RULE}", field=TARGET)
    try:
        parts = urlsplit(sent)
    except ValueError:
        raise wrong from None
    if parts.scheme != "https" or parts.netloc not in TARGETS or not sent.isascii():
        raise wrong
    return TARGETS[parts.netloc] + parts.path, parts.query
