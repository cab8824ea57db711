"""Replicate's HTTP API at `/v1` and `/replicate/v1`: predictions that are jobs, models, webhooks.

Also at `/v1/v1`, where its Python client 1.x ends up with an address that its 2.x needs. The words of the
input are `server.http.predictions`; what survives is `server.jobs`.
"""

import re
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from server.engine import Engine
from server.errors import InvalidRequest, MalformedHeader, ServerError
from server.generation import ModelInfo
from server.http.body import RequestBody, json_schema, read_json, shown
from server.http.calls import submit_job
from server.http.description import BODY_ERRORS, described
from server.http.errors import STATUS, error_response, message_of, route_class
from server.http.exchange import key_of
from server.http.leniency import Leniency
from server.http.models import model_if_loaded, model_object, version_object, version_of
from server.http.outputs import Outputs
from server.http.own_files import PREFIXES, uploads_router
from server.http.pictures import Picture, pictures_response
from server.http.predictions import INPUT_EXAMPLE, Input, logs_of, start_of, to_request
from server.http.replicate_stream import stream_router, stream_url
from server.http.sources import Sources
from server.job import Job, JobKey, JobState, Webhook, new_job_id
from server.job_store import Delivery
from server.jobs import Jobs
from server.signatures import Signatures
from server.webhooks import Payload

DIALECT: Final = "replicate"
MODEL: Final = "black-forest-labs/flux-schnell"  # as it is called there
CURSOR: Final = re.compile(r"[1-9][0-9]{0,17}")
PAGE: Final = 100
LONGEST_WAIT_S: Final = 60
WAIT_MARGIN_S: Final = 0.5  # clients give up half a second after the time they asked for
WAIT: Final = re.compile(r"wait(?:=(\d{1,9}))?")
CANCEL_AFTER: Final = re.compile(r"(\d{1,9})|(?=\d)(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?")
SHORTEST_CANCEL_S: Final = 5
CANCEL_RULE: Final = f"a time such as 30s, 5m or 1h30m45s, of at least {SHORTEST_CANCEL_S} seconds"
TITLES: Final = {401: "Unauthenticated", 403: "Forbidden", 404: "Not found", 422: "Input validation failed"}
WAIT_PARAMETER: Final[dict[str, Any]] = {
    "name": "Prefer",
    "in": "header",
    "schema": {"type": "string"},
    "description": f"wait, or wait=n: up to n seconds, at most {LONGEST_WAIT_S}",
}
CANCEL_PARAMETER: Final[dict[str, Any]] = {
    "name": "Cancel-After",
    "in": "header",
    "schema": {"type": "string"},
    "description": CANCEL_RULE,
}

DEFAULT_EVENTS: Final[tuple[str, ...]] = ("output", "completed")
MAX_NAME_CHARS: Final = 256

Event = Literal["start", "output", "logs", "completed"]


class PredictionCreate(RequestBody):
    """What creates a prediction; what is not listed is accepted and ignored."""

    model_config = ConfigDict(extra="ignore")

    input: Annotated[Input, Field(description="an object with the input of the model")]
    version: Annotated[
        str | None,
        Field(max_length=MAX_NAME_CHARS, description="owner/name, owner/name:version or version"),
    ] = None
    webhook: Annotated[str | None, Field(description="the URL to call")] = None
    webhook_events_filter: Annotated[
        list[Event] | None, Field(description='some of "start", "output", "logs" and "completed"')
    ] = None
    webhook_completed: Annotated[str | None, Field(description="the older name for completed alone")] = None


CREATING: Final = json_schema(PredictionCreate, {"input": INPUT_EXAMPLE}) | {
    "parameters": [WAIT_PARAMETER, CANCEL_PARAMETER]
}
CREATED: Final = described(
    *BODY_ERRORS, "malformed_header", "not_found", "overloaded", "not_ready", "storage_unavailable"
)
CREATED[201] = {**CREATED.pop(200), "description": "The prediction, finished if that was waited for"}
CREATED[202] = {**CREATED[201], "description": "It did not finish in the time to wait"}
LISTED: Final = described("invalid_request", "storage_unavailable")
FOUND: Final = described("not_found", "storage_unavailable")
KNOWN: Final = described("not_found", "not_ready")


def replicate_routers(
    engine: Engine, jobs: Jobs, outputs: Outputs, sources: Sources, leniency: Leniency
) -> list[APIRouter]:
    """Return the routes of the dialect under each of its prefixes, and that of its streams."""
    routers = [
        router
        for prefix in PREFIXES
        for router in (
            replicate_router(engine, jobs, outputs, sources, leniency, prefix),
            uploads_router(sources.own, render_error, prefix),
        )
    ]
    return [*routers, stream_router(DIALECT, jobs, outputs, render_error)]


def replicate_router(
    engine: Engine, jobs: Jobs, outputs: Outputs, sources: Sources, leniency: Leniency, prefix: str
) -> APIRouter:
    """Return the routes under `prefix`, which the addresses in answers keep."""
    router = APIRouter(
        prefix=prefix,
        route_class=route_class(render_error),
        include_in_schema=prefix == PREFIXES[0],
        tags=["Replicate"],
    )

    @router.post("/predictions", summary="Create a prediction", responses=CREATED, openapi_extra=CREATING)
    async def create_prediction(http: Request) -> Response:
        body = await read_json(http, PredictionCreate)
        name, _, version = (body.version or MODEL).partition(":")
        if "/" in name:
            return await create(http, body, name, version or "hidden")
        return await create(http, body, MODEL, name)

    @router.post(
        "/models/{owner}/{name}/predictions",
        summary="Create a prediction of a model",
        responses=CREATED,
        openapi_extra=CREATING,
    )
    async def create_model_prediction(http: Request, owner: str, name: str) -> Response:
        body = await read_json(http, PredictionCreate)
        return await create(http, body, f"{owner}/{name}", "hidden")

    @router.get("/predictions", summary="Predictions, the newest first", responses=LISTED)
    async def list_predictions(http: Request) -> Response:
        page = await jobs.newest(dialect=DIALECT, owner=key_of(http), limit=PAGE + 1, **_filters(http))
        if http.query_params.get("source") == "web":
            page = []  # all of them came through the API
        base_url, shown_jobs = outputs.base_url(http), [job for _, job in page[:PAGE]]
        return _json(
            {
                "previous": None,
                "next": _next_page(http, f"{base_url}{prefix}", page[PAGE - 1][0])
                if len(page) > PAGE
                else None,
                "results": [
                    prediction(job, urls(job, base_url), outputs.urls(job, base_url)) for job in shown_jobs
                ],
            }
        )

    @router.get("/predictions/{prediction_id}", summary="A prediction", responses=FOUND)
    async def get_prediction(http: Request, prediction_id: str) -> Response:
        job = await jobs.get(_key(http, prediction_id))
        return await answer(job, outputs.base_url(http))

    @router.post("/predictions/{prediction_id}/cancel", summary="End a prediction", responses=FOUND)
    async def cancel_prediction(http: Request, prediction_id: str) -> Response:
        job = await jobs.cancel(_key(http, prediction_id))
        return await answer(job, outputs.base_url(http))

    @router.get("/models/{owner}/{name}", summary="The model", responses=KNOWN)
    async def get_model(http: Request, owner: str, name: str) -> Response:
        check(http, f"{owner}/{name}", engine.model, field="model")
        return _json(model_object(owner, name, engine.model, base_url=outputs.base_url(http)))

    @router.get("/models/{owner}/{name}/versions", summary="Its one version", responses=KNOWN)
    async def list_versions(http: Request, owner: str, name: str) -> Response:
        check(http, f"{owner}/{name}", engine.model, field="model")
        versions = [version_object(version_of(engine.model))]
        return _json({"previous": None, "next": None, "results": versions})

    @router.get(
        "/models/{owner}/{name}/versions/{version_id}",
        summary="A version; any that is asked for is the one that is served",
        responses=KNOWN,
    )
    async def get_version(http: Request, owner: str, name: str, version_id: str) -> Response:
        check(http, f"{owner}/{name}", engine.model, field="model")
        return _json(version_object(version_id[:MAX_NAME_CHARS]))

    @router.get("/webhooks/default/secret", summary="The key of webhook signatures", responses=described())
    async def get_webhook_secret(http: Request) -> Response:
        return _json({"key": jobs.webhooks.signatures.secret_of(key_of(http))})

    def check(http: Request, name: str, model: ModelInfo, *, field: str) -> None:
        if name != MODEL:
            leniency.check_model(name, model, http, field=field)

    async def create(http: Request, body: PredictionCreate, name: str, version: str) -> Response:
        wait_s = wanted_wait_s(http)
        model = model_if_loaded(engine)
        if model is not None:
            check(http, name, model, field="version" if body.version else "model")
        base_url = outputs.base_url(http)
        request = to_request(body.input, model, leniency, id="")
        webhook = await checked_webhook(body, jobs)
        if start := start_of(body.input):
            request = await sources.begin(http, request, start)
        wanted = Job(
            key=_key(http, new_job_id()),
            request=request,
            seeded=bool(body.input.seed),
            input={"model": name, "version": version, "input": body.input.model_dump(exclude_unset=True)},
            base_url=base_url,
            webhook=webhook,
            deadline_s=deadline_s(http, now=time.time()),
        )
        job = await submit_job(jobs, http, wanted)
        if wait_s is not None:
            job = await jobs.wait(job.key, wait_s - WAIT_MARGIN_S)
        if wait_s is None or job.state.final:
            return await answer(job, base_url, status=201)
        # Who asked to wait takes any other state for the end.
        waited = msgspec.structs.replace(job, state=JobState.STARTING)
        return await answer(waited, base_url, status=202)

    async def answer(job: Job, base_url: str, *, status: int = 200) -> Response:
        """Answer with a prediction as it is, its pictures as the server's rule has them."""
        output = await outputs.of(job, base_url)
        return pictures_response(prediction(job, urls(job, base_url), output), status)

    def urls(job: Job, base_url: str) -> dict[str, str]:
        return urls_of(job, base_url, prefix, jobs.webhooks.signatures)

    return router


def urls_of(job: Job, base_url: str, prefix: str, signatures: Signatures) -> dict[str, str]:
    """Return where clients ask after a prediction; none is ever null."""
    address = f"{base_url}{prefix}/predictions/{job.key.id}"
    stream = stream_url(job.key, base_url, signatures)
    return {"get": address, "cancel": f"{address}/cancel", "web": address, "stream": stream}


def prediction(job: Job, urls: dict[str, str], output: list[str] | list[Picture] | None) -> dict[str, Any]:
    """Return a job as clients know it."""
    times = {"predict_time": _between(job.started_s, job.completed_s)}
    times["total_time"] = _between(job.created_s, job.completed_s)
    shown_as = {
        "id": job.key.id,
        "model": job.input["model"],
        "version": job.input["version"],
        "input": job.input["input"],
        "logs": "" if job.started_s is None else logs_of(job.request),
        "output": output or None,
        "error": None if job.error is None else job.error.message,
        "status": job.state.value,
        "data_removed": bool(job.images) and not output,
        "source": "api",
        "created_at": _iso(job.created_s),
        "started_at": _iso(job.started_s),
        "completed_at": _iso(job.completed_s),
        "metrics": {name: seconds for name, seconds in times.items() if seconds is not None},
        "urls": urls,
    }
    return shown_as if job.deadline_s is None else shown_as | {"deadline": _iso(job.deadline_s)}


def replicate_payload(outputs: Outputs, signatures: Signatures) -> Payload:
    """Return what says in a webhook how a prediction is; its pictures are addresses, never data."""

    async def payload(delivery: Delivery) -> bytes:
        job = delivery.job
        urls = urls_of(job, job.base_url, PREFIXES[0], signatures)
        return msgspec.json.encode(prediction(job, urls, outputs.urls(job, job.base_url)))

    return payload


def render_error(request: Request, error: ServerError) -> Response:
    """Answer with problem details; a wrong field is also named in a list."""
    status, message = STATUS[error.code], message_of(error)
    content: dict[str, Any] = {"title": TITLES.get(status, "Error"), "detail": message, "status": status}
    if isinstance(error, InvalidRequest) and error.field and status == 422:
        content["detail"] = f"- {message}\n"
        content["invalid_fields"] = [{"type": error.code, "field": error.field, "description": message}]
    return error_response(request, error, msgspec.json.encode(content))


def wanted_wait_s(http: Request) -> int | None:
    """Return how long a client prefers to wait, if it does; what else it prefers is passed over."""
    for preference in ",".join(http.headers.getlist("prefer")).split(","):
        if match := WAIT.fullmatch(preference.strip().lower()):
            return min(LONGEST_WAIT_S, max(1, int(match[1] or LONGEST_WAIT_S)))
    return None


def _key(http: Request, prediction_id: str) -> JobKey:
    return JobKey(DIALECT, key_of(http), prediction_id)


async def checked_webhook(body: PredictionCreate, jobs: Jobs) -> Webhook | None:
    """Return where to call and for what, if the client wants to be called; raises `InvalidRequest`."""
    if url := body.webhook:
        events = (
            DEFAULT_EVENTS if body.webhook_events_filter is None else tuple({*body.webhook_events_filter})
        )
        await jobs.webhooks.check(url, field="webhook")
        return Webhook(url=url, events=events)
    if url := body.webhook_completed:
        await jobs.webhooks.check(url, field="webhook_completed")
        return Webhook(url=url, events=("completed",))
    return None


def deadline_s(http: Request, *, now: float) -> float | None:
    """Return when a prediction is to be cancelled, in Unix time; raises `MalformedHeader`."""
    sent = http.headers.get("cancel-after")
    if sent is None:
        return None
    match = CANCEL_AFTER.fullmatch(sent.strip())
    if match is None:
        raise MalformedHeader(f"cancel-after is {shown(sent)}; allowed: {CANCEL_RULE}", field="cancel-after")
    seconds, hours, minutes, rest = (int(each or 0) for each in match.groups())
    after_s = seconds + 3600 * hours + 60 * minutes + rest
    if after_s < SHORTEST_CANCEL_S:
        raise MalformedHeader(f"cancel-after is {shown(sent)}; allowed: {CANCEL_RULE}", field="cancel-after")
    return now + after_s


def _filters(http: Request) -> dict[str, Any]:
    """Return which jobs a list is to have, as `Jobs.newest` takes it."""
    asked = http.query_params
    cursor = asked.get("cursor")
    if cursor is not None and not CURSOR.fullmatch(cursor):
        raise InvalidRequest(f"cursor is {shown(cursor)}; allowed: the one of a next page", field="cursor")
    filters: dict[str, Any] = {} if cursor is None else {"before": int(cursor)}
    for name in ("created_after", "created_before"):
        if name in asked:
            filters[f"{name}_s"] = _unix(asked[name], name)
    return filters


def _next_page(http: Request, api_url: str, cursor: int) -> str:
    return f"{api_url}/predictions?{http.url.include_query_params(cursor=cursor).query}"


def _unix(sent: str, field: str) -> float:
    try:
        moment = datetime.fromisoformat(sent)
    except ValueError:
        raise InvalidRequest(
            f"{field} is {shown(sent)}; allowed: a time as in ISO 8601", field=field
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _iso(unix_s: float | None) -> str | None:
    if unix_s is None:
        return None
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _between(begin_s: float | None, end_s: float | None) -> float | None:
    return None if begin_s is None or end_s is None else max(0.0, end_s - begin_s)


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
