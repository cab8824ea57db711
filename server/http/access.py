"""Around every request: its id, its timing header, its line in the log, its count in the metrics.

Also the last place that catches what nobody expected, so that a client gets a plain 500 and the log the
traceback.
"""

import re
import secrets
import time
from typing import Final

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import ServerError
from server.generation import GenerationResult
from server.http.errors import ERROR_CODES, Render, unexpected_error
from server.http.exchange import SCOPE_KEY, ClientGone, Exchange
from server.http.room import Room
from server.metrics import Metrics, stage_seconds

REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_-]{8,64}")
CLIENT_GONE: Final = 499
LARGE_BODIES_AT_ONCE: Final = 4  # of the largest size; a body is in memory up to three times while it is read
FAL_STATUS: Final = "/fal/queue/{owner}/{alias}/requests/{request_id}/status"  # ten times a second
POLLED: Final = frozenset({"/livez", "/readyz", "/metrics", "/v1/status", FAL_STATUS})  # by machines

log = structlog.get_logger("server.access")


class AccessMiddleware:
    """Plain ASGI, outside of everything else; `render` answers faults of ours."""

    def __init__(self, app: ASGIApp, metrics: Metrics, max_body_bytes: int, render: Render) -> None:
        self._app = app
        self._render = render
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._room = Room(LARGE_BODIES_AT_ONCE * max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.perf_counter()
        exchange = scope[SCOPE_KEY] = Exchange(
            _request_id(Headers(scope=scope)), max_body_bytes=self._max_body_bytes, room=self._room
        )
        status, size_bytes = CLIENT_GONE, 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status, size_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), exchange, time.perf_counter() - began_s)
            else:
                size_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientGone:
            exchange.outcome = "client_gone"
        except Exception:  # a fault of ours: the client gets its id and nothing else
            log.exception("unexpected", request_id=exchange.request_id)
            exchange.outcome = ServerError.code
            if status == CLIENT_GONE:
                answer = self._render(Request(scope), unexpected_error())
                await answer(scope, receive, send_with_headers)
        finally:
            exchange.give_room()
            exchange.note["size_bytes"] = size_bytes
            self._finish(scope, exchange, status, time.perf_counter() - began_s)

    def _finish(self, scope: Scope, exchange: Exchange, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        outcome = exchange.outcome
        if outcome == "ok" and status >= 400:
            outcome = "client_gone"
        assert outcome in ERROR_CODES | {"ok", "client_gone"}, f"{outcome} is a new label"
        self._metrics.request(route, outcome, exchange.result)
        write = log.debug if route in POLLED else log.info
        write(
            "request",
            request_id=exchange.request_id,
            client=(scope["client"] or ("unix",))[0],
            method=scope["method"],
            route=route,
            status=status,
            outcome=outcome,
            ms=round(seconds * 1000, 1),
            **exchange.note,
        )


def _request_id(headers: Headers) -> str:
    """Keep the client's id when it is harmless, else make one."""
    sent = headers.get("x-request-id", "")
    return sent if REQUEST_ID.fullmatch(sent) else secrets.token_hex(16)


def _add_headers(headers: MutableHeaders, exchange: Exchange, seconds: float) -> None:
    headers["X-Request-Id"] = exchange.request_id
    headers["Server-Timing"] = _server_timing(exchange.result, seconds)
    headers["X-Content-Type-Options"] = "nosniff"
    headers.update(exchange.headers)
    headers.setdefault("Cache-Control", "no-store")


def _server_timing(result: GenerationResult | None, seconds: float) -> str:
    """Say where the time went, and for a picture what was said of it when its request came in.

    `queue` has the pictures that were due before it, `predicted` the time that all of it should have taken.
    """
    if result is None:
        return f"total;dur={seconds * 1000:.1f}"
    entries = {
        name: f"{name};dur={stage_s * 1000:.1f}" for name, stage_s in stage_seconds(result.timings).items()
    }
    if result.forecast is not None:
        entries["queue"] += f';desc="position {result.forecast.position}"'
        entries["total"] = f"predicted;dur={result.forecast.finish_s * 1000:.1f}, {entries['total']}"
    return ", ".join(entries.values())
