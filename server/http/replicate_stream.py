"""`urls.stream` of a prediction: its log, its pictures and its end as server-sent events.

JavaScript opens it without a key, so its address has what nobody guesses. It is below `/v1/files/` because
there alone that client makes files of what comes. Leaving a stream ends nothing but the stream.
"""

import hmac
from collections.abc import AsyncIterator
from typing import Final

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.sse import format_sse_event

from server.errors import NotFound
from server.http.description import described
from server.http.errors import Render, route_class
from server.http.event_stream import EVENT_STREAM, stream_response
from server.http.outputs import Outputs
from server.http.pictures import spelled
from server.http.predictions import logs_of
from server.job import Job, JobKey, JobState
from server.jobs import Jobs
from server.signatures import Signatures

PATH: Final = "/v1/files/stream"


def stream_url(key: JobKey, base_url: str, signatures: Signatures) -> str:
    """Return where the events of a prediction are."""
    owner = f".{key.owner}" if key.owner else ""  # names of keys have no dots
    return f"{base_url}{PATH}/{key.id}.{signatures.token(key)}{owner}"


def stream_router(dialect: str, jobs: Jobs, outputs: Outputs, render: Render) -> APIRouter:
    """Return the route of all streams of a dialect's jobs."""
    router = APIRouter(route_class=route_class(render), tags=["Replicate"])

    @router.get(
        f"{PATH}/{{name}}",
        summary="A prediction as events",
        responses=described(
            "not_found", "storage_unavailable", ok={EVENT_STREAM: {}}, ok_text="logs, output, error and done"
        ),
    )
    async def stream(http: Request, name: str) -> Response:
        prediction_id, token, owner = (*name.split(".", 2), "", "")[:3]
        key = JobKey(dialect, owner, prediction_id)
        if not hmac.compare_digest(token.encode(), jobs.webhooks.signatures.token(key).encode()):
            raise NotFound("there is no such stream", field="name")
        await jobs.get(key)
        return stream_response(events(jobs, key, outputs, outputs.base_url(http)))

    return router


async def events(jobs: Jobs, key: JobKey, outputs: Outputs, base_url: str) -> AsyncIterator[bytes]:
    """Yield the events of a job to its end, in pieces; clients drop those without an id."""
    number, job = 0, None
    async for job in jobs.changes(key):
        if job.started_s is not None and number == 0:
            number = 1
            yield _event("logs", logs_of(job.request), number)
    if job is None or not job.state.final:
        yield _event("error", _json({"detail": "nothing takes the request at the moment"}), number + 1)
        return
    for address in await outputs.of(job, base_url) or ():
        number += 1
        if isinstance(address, str):
            yield _event("output", address, number)
            continue
        yield f"event: output\nid: {number}\ndata: ".encode()
        async for piece in spelled(address):
            yield piece
        yield b"\n\n"
    if job.error is not None:
        number += 1
        yield _event("error", _json({"detail": job.error.message}), number)
    yield _event("done", _json(_reason(job)), number + 1)


def _reason(job: Job) -> dict[str, str]:
    """Why it is over, where it is not because all is done."""
    match job.state:
        case JobState.CANCELED:
            return {"reason": "canceled"}
        case JobState.FAILED:
            return {"reason": "error"}
    return {}


def _event(name: str, data: str, number: int) -> bytes:
    return format_sse_event(data_str=data, event=name, id=str(number))


def _json(content: object) -> str:
    return msgspec.json.encode(content).decode()
