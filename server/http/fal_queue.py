"""fal's queue at `/fal/queue`: requests that are jobs, asked after by whoever made them.

Clients know three states: `IN_QUEUE`, `IN_PROGRESS` and `COMPLETED`. What failed or was cancelled is
completed too, and asking for its result tells the failure. A state is asked for up to ten times a second, so
it comes from memory until the job is finished.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from server.engine import Engine
from server.errors import (
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    NotFound,
    ServerError,
)
from server.events import Listener, ignore_all
from server.generation import GenerationRequest
from server.http.body import json_schema, read_json
from server.http.calls import submit_job
from server.http.description import BODY_ERRORS, KEY_ERRORS, described
from server.http.errors import route_class
from server.http.event_stream import events_response
from server.http.exchange import exchange_of, key_of
from server.http.fal_app import (
    EXAMPLE,
    HEADER_PARAMETERS,
    STATUSES,
    Input,
    check_app,
    error_content,
    name_request,
    output_of,
    priority_of,
    render_error,
    start_of,
    start_timeout_s,
    to_request,
)
from server.http.leniency import Leniency
from server.http.models import model_if_loaded
from server.http.outputs import Outputs
from server.http.pictures import pictures_response
from server.http.sources import Sources
from server.job import Job, JobKey, JobState, Webhook
from server.job_store import Delivery
from server.jobs import Jobs
from server.webhooks import Payload

DIALECT: Final = "fal"
PREFIX: Final = "/fal/queue"
PATHS: Final = ("/{owner}/{alias}", "/{owner}/{alias}/{variant}")
TRUE: Final = ("1", "true")
SUBMITTED: Final[dict[str, Any]] = {
    "responses": described(
        *BODY_ERRORS,
        *KEY_ERRORS,
        "malformed_header",
        "not_found",
        "overloaded",
        "not_ready",
        "storage_unavailable",
        statuses=STATUSES,
    ),
    "openapi_extra": json_schema(Input, EXAMPLE) | {"parameters": HEADER_PARAMETERS},
}
ASKED: Final = described("not_found", "storage_unavailable", statuses=STATUSES)
ENDED: Final = described(
    "not_found",
    "storage_unavailable",
    "generation_failed",
    "cancelled",
    "deadline_exceeded",
    ok_text="The output",
    statuses=STATUSES,
)
ENDED[400] = {**ASKED[200], "description": "It is not finished"}
STATUS_ANSWERS: Final = {**ASKED, 202: {**ASKED[200], "description": "It is not finished"}}
CANCEL_ANSWERS: Final = {
    **ASKED,
    202: {**ASKED[200], "description": "It had begun, and is being ended"},
    400: {**ASKED[200], "description": "It is finished"},
}
EVENTS: Final = described(
    "not_found",
    "storage_unavailable",
    ok={"text/event-stream": {}},
    ok_text="Its states",
    statuses=STATUSES,
)


class Queue:
    """The jobs of this dialect. `start_by_s` in the input of one is when it must have begun, in Unix time."""

    def __init__(
        self, engine: Engine, jobs: Jobs, outputs: Outputs, sources: Sources, leniency: Leniency
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._outputs = outputs
        self._sources = sources
        self._leniency = leniency
        self._watches: set[asyncio.Task[None]] = set()

    async def asked(self, http: Request, app: str, sent: Input) -> GenerationRequest:
        """Return what is asked for, whether the model is loaded already or not."""
        model = model_if_loaded(self._engine)
        if model is not None:
            check_app(app, model, self._leniency, http)
        request = to_request(sent, model, self._leniency, id="", priority=priority_of(http))
        if start := start_of(sent):
            request = await self._sources.begin(http, request, start)
        return request

    async def submit(
        self,
        http: Request,
        app: str,
        sent: Input,
        request: GenerationRequest,
        *,
        webhook: str | None = None,
        listen: Listener = ignore_all,
    ) -> Job:
        """Accept a job; raises what `Jobs.submit` raises, or what is wrong with the request."""
        timeout_s = start_timeout_s(http)
        kept: dict[str, Any] = {"app": app, "sync_mode": bool(sent.sync_mode)}
        if timeout_s is not None:
            kept["start_by_s"] = time.time() + timeout_s
        if webhook is not None:
            await self._jobs.webhooks.check(webhook, field="fal_webhook")
        wanted = Job(
            key=JobKey(DIALECT, key_of(http), str(uuid.uuid4())),
            request=request,
            seeded=sent.seed is not None,
            input=kept,
            base_url=self._outputs.base_url(http),
            webhook=None if webhook is None else Webhook(url=webhook, events=("completed",)),
        )
        job = await submit_job(self._jobs, http, wanted, listen)
        _name(http, job)
        if timeout_s is not None:
            watch = asyncio.create_task(self._end_unless_begun(job.key, timeout_s))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)
        return job

    async def find(self, http: Request, request_id: str) -> Job:
        """Return the job of a client; raises `NotFound`. One that should have begun by now is ended."""
        job = await self._jobs.get(JobKey(DIALECT, key_of(http), request_id))
        _name(http, job)
        if job.state is JobState.STARTING and _is_overdue(job, now=time.time()):
            return await self._jobs.cancel(job.key)
        return job

    async def cancel(self, job: Job) -> Job:
        """End a job, and return it; one that is finished stays as it is."""
        return await self._jobs.cancel(job.key)

    async def output(self, job: Job, base_url: str) -> dict[str, Any]:
        """Return the output of a finished job; raises what became of one that has none."""
        if error := failure_of(job):
            raise error
        rule = replace(self._outputs, rule="data") if job.input["sync_mode"] else self._outputs
        addresses = await rule.of(job, base_url)
        if addresses is None:
            raise NotFound("the pictures of this request have expired", field="request_id")
        return output_of(job.request, job.images, addresses, job.timings)

    def position(self, job: Job) -> int:
        """Return how many jobs are before this one."""
        return self._jobs.position(job.key)

    def status(self, job: Job, base_url: str, *, logs: bool) -> dict[str, Any]:
        """Return how a job is, as clients know it."""
        shown: dict[str, Any] = {**urls_of(job, base_url), "logs": _logs(job) if logs else None}
        match job.state:
            case JobState.STARTING:
                return shown | {"status": "IN_QUEUE", "queue_position": self.position(job)}
            case JobState.PROCESSING:
                return shown | {"status": "IN_PROGRESS"}
        seconds = (job.completed_s or 0.0) - (job.started_s or job.completed_s or 0.0)
        shown |= {"status": "COMPLETED", "metrics": {"inference_time": max(0.0, seconds)}}
        if error := failure_of(job):
            shown |= {"error": error.message, "error_type": error_content(error)["error_type"]}
        return shown

    async def statuses(self, job: Job, base_url: str, *, logs: bool) -> AsyncIterator[dict[str, Any]]:
        """Yield how a job is whenever it has moved, to its end; each line of its log once."""
        async for moved in self._jobs.changes(job.key):
            status = self.status(moved, base_url, logs=logs)
            logs = logs and not status["logs"]
            yield status

    async def _end_unless_begun(self, key: JobKey, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                async for job in self._jobs.changes(key):
                    if job.state is not JobState.STARTING:
                        return
                await asyncio.sleep(timeout_s)  # nothing takes it at the moment
        found = await self._jobs.find(key)
        if found is not None and found.state is JobState.STARTING:
            await self._jobs.cancel(key)


def queue_routers(queue: Queue, outputs: Outputs) -> list[APIRouter]:
    """Return the routes of the queue. Clients ask after a request without the last part of its app."""
    return [
        _submit_router(queue, outputs),
        *(
            _request_router(queue, outputs, f"{PREFIX}{path}/requests/{{request_id}}", documented)
            for path, documented in ((PATHS[0], True), (PATHS[1], False))
        ),
    ]


def _submit_router(queue: Queue, outputs: Outputs) -> APIRouter:
    router = APIRouter(
        prefix=PREFIX,
        route_class=route_class(render_error),
        dependencies=[Depends(name_request)],
        tags=["fal"],
    )

    @router.post(PATHS[1], summary="Put a request into the queue", **SUBMITTED)
    async def submit(
        http: Request, owner: str, alias: str, variant: str, fal_webhook: str | None = None
    ) -> Response:
        return await submitted(http, f"{owner}/{alias}/{variant}", fal_webhook)

    @router.post(f"{PATHS[1]}/image-to-image", include_in_schema=False)
    async def submit_long(
        http: Request, owner: str, alias: str, variant: str, fal_webhook: str | None = None
    ) -> Response:
        return await submitted(http, f"{owner}/{alias}/{variant}/image-to-image", fal_webhook)

    @router.post(PATHS[0], include_in_schema=False)
    async def submit_short(http: Request, owner: str, alias: str, fal_webhook: str | None = None) -> Response:
        return await submitted(http, f"{owner}/{alias}", fal_webhook)

    async def submitted(http: Request, app: str, webhook: str | None) -> Response:
        sent = await read_json(http, Input)
        request = await queue.asked(http, app, sent)
        job = await queue.submit(http, app, sent, request, webhook=webhook)
        content = {"status": "IN_QUEUE", "queue_position": queue.position(job)}
        content |= urls_of(job, outputs.base_url(http))
        return _json(content if webhook is None else content | {"gateway_request_id": job.key.id})

    return router


def _request_router(queue: Queue, outputs: Outputs, prefix: str, documented: bool) -> APIRouter:
    router = APIRouter(
        prefix=prefix,
        route_class=route_class(render_error),
        dependencies=[Depends(name_request)],
        include_in_schema=documented,
        tags=["fal"],
    )

    @router.get("/status", summary="How a request is", responses=STATUS_ANSWERS)
    async def get_status(http: Request, owner: str, alias: str, request_id: str, logs: str = "0") -> Response:
        job = await queue.find(http, request_id)
        content = queue.status(job, outputs.base_url(http), logs=logs.lower() in TRUE)
        return _json(content, 200 if job.state.final else 202)

    @router.get("/status/stream", summary="How a request is, as events", responses=EVENTS)
    async def stream_status(
        http: Request, owner: str, alias: str, request_id: str, logs: str = "0"
    ) -> Response:
        job = await queue.find(http, request_id)
        return events_response(queue.statuses(job, outputs.base_url(http), logs=logs.lower() in TRUE))

    @router.get("", summary="The output of a request", responses=ENDED)
    async def get_result(http: Request, owner: str, alias: str, request_id: str) -> Response:
        job = await queue.find(http, request_id)
        if not job.state.final:
            return _json({"detail": "Request is still in progress"}, 400)
        return pictures_response(await queue.output(job, outputs.base_url(http)))

    @router.put("/cancel", summary="End a request", responses=CANCEL_ANSWERS)
    async def cancel_request(http: Request, owner: str, alias: str, request_id: str) -> Response:
        job = await queue.find(http, request_id)
        ended = job if job.state.final else await queue.cancel(job)
        if job.state.final or ended.state is not JobState.CANCELED:
            return _json({"status": "ALREADY_COMPLETED"}, 400)
        if job.state is JobState.STARTING:
            return _json({"status": "OK"})
        return _json({"status": "CANCELLATION_REQUESTED"}, 202)

    return router


def fal_payload(outputs: Outputs) -> Payload:
    """Return what says in a webhook how a request ended; its pictures are addresses, never data."""

    async def payload(delivery: Delivery) -> bytes:
        job = delivery.job
        content: dict[str, Any] = {"request_id": job.key.id, "gateway_request_id": job.key.id}
        if error := failure_of(job):
            status = STATUSES[error.code]
            content |= {"status": "ERROR", "error": f"Invalid status code: {status}"}
            content["payload"] = error_content(error)
        else:
            urls = outputs.urls(job, job.base_url)
            content |= {"status": "OK", "payload": output_of(job.request, job.images, urls, job.timings)}
        return msgspec.json.encode(content)

    return payload


def failure_of(job: Job) -> ServerError | None:
    """Return what became of a job that has ended without pictures.

    Of a kind that no client repeats its question for: asking again would not change the answer.
    """
    if job.state is JobState.CANCELED:
        if _is_overdue(job, now=job.completed_s or 0.0):
            return DeadlineExceeded("the request did not begin within the time that was asked for")
        return Cancelled("the request was cancelled")
    return None if job.error is None else GenerationFailed(job.error.message)


def urls_of(job: Job, base_url: str) -> dict[str, str]:
    """Return under which addresses a job is asked after."""
    owner, alias, *_ = job.input["app"].split("/")
    address = f"{base_url}{PREFIX}/{owner}/{alias}/requests/{job.key.id}"
    return {
        "request_id": job.key.id,
        "response_url": address,
        "status_url": f"{address}/status",
        "cancel_url": f"{address}/cancel",
    }


def _is_overdue(job: Job, *, now: float) -> bool:
    """Whether a job has not begun when it had to."""
    start_by_s = job.input.get("start_by_s")
    return start_by_s is not None and job.started_s is None and now >= start_by_s


def _logs(job: Job) -> list[dict[str, str]]:
    if job.started_s is None:
        return []
    moment = datetime.fromtimestamp(job.started_s, UTC).isoformat()
    message = f"Using seed: {job.request.seed}"
    return [{"message": message, "level": "INFO", "source": "USER", "timestamp": moment}]


def _name(http: Request, job: Job) -> None:
    """Say in the answer and in the log which job it is about."""
    exchange_of(http).headers["X-Fal-Request-Id"] = job.key.id
    exchange_of(http).note["job"] = job.key.id


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
