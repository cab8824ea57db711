"""The HTTP API of a Cog container at the root, as coglet 0.23.1 answers: predictions, health, an index.

A prediction is known by its id while it runs, to the caller who started it: putting it again tells its
state, cancelling ends it, and a client that leaves takes its prediction along. With a webhook or with
`Prefer: respond-async` it is a job, and with the latter it outlives its client and the process; while a job
is kept, its id is that of no other prediction. A model that fails is an answer with status 200, as it is
there.
"""

import platform
import re
import secrets
import time
from dataclasses import replace
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ConfigDict, Field, model_validator

from server import __version__
from server.engine import Engine
from server.errors import (
    Cancelled,
    GenerationFailed,
    InvalidRequest,
    MalformedBody,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    NotReady,
    RequestTooLarge,
    ServerError,
    UnsupportedMediaType,
)
from server.generation import GenerationRequest, GenerationResult
from server.http.accept import accepted_types, prefers_html
from server.http.body import RequestBody, json_schema, read_json, shown
from server.http.calls import finished_job, generate, submit_job
from server.http.description import BODY_ERRORS, ENGINE_ERRORS, described
from server.http.errors import STATUS, error_response, message_of, route_class
from server.http.exchange import exchange_of, key_of
from server.http.leniency import Leniency
from server.http.outputs import Outputs
from server.http.pictures import Picture, pictures_json, pictures_response
from server.http.playground import Playground
from server.http.predictions import (
    INPUT_EXAMPLE,
    OUTPUT_SCHEMA,
    Input,
    logs_of,
    output_of,
    start_of,
    to_request,
)
from server.http.running import Call, Running, caller_of
from server.http.sources import Sources
from server.job import Job, JobKey, Webhook
from server.job_store import Delivery
from server.jobs import Jobs
from server.webhooks import Payload

DIALECT: Final = "cog"
COG_VERSION: Final = "0.23.1"  # whose answers these are
PREDICTION_ID: Final = re.compile(r"^[^\x00-\x1f\x7f/]{1,128}$")
ASYNC: Final = "respond-async"
ID_RULE: Final = "text of 1 to 128 characters, without slashes and control characters"
STATUSES: Final = {
    **STATUS,
    "overloaded": 409,
    "generation_failed": 200,
    "out_of_memory": 200,
    "cancelled": 200,
}
INDEX: Final = {
    "cog_version": COG_VERSION,
    "docs_url": "/docs",
    "openapi_url": "/openapi.json",
    "healthcheck_url": "/health-check",
    "predictions_url": "/predictions",
    "predictions_idempotent_url": "/predictions/{prediction_id}",
    "predictions_cancel_url": "/predictions/{prediction_id}/cancel",
}
RESPONSE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {
        "id": {"type": "string", "description": "of the prediction"},
        "status": {
            "enum": ["starting", "processing", "succeeded", "failed", "canceled"],
            "description": "now",
        },
        "input": {"type": "object", "description": "what was sent, while it runs"},
        "output": {"$ref": "#/components/schemas/Output"},
        "error": {"type": "string", "description": "why it failed"},
        "logs": {"type": "string", "description": "the seed"},
        "metrics": {"type": "object", "description": "seconds"},
    },
    "$defs": {"Output": OUTPUT_SCHEMA},
}


Event = Literal["start", "output", "logs", "completed"]


class PredictionBody(RequestBody):
    """`POST /predictions`; what is not listed is accepted and ignored."""

    model_config = ConfigDict(extra="ignore")

    input: Annotated[Input, Field(description="an object with the input of the model")]
    id: Annotated[str | None, Field(description=ID_RULE, pattern=PREDICTION_ID.pattern)] = None
    webhook: Annotated[str | None, Field(description="the URL to call")] = None
    webhook_events_filter: Annotated[
        list[Event] | None, Field(description='some of "start", "output", "logs" and "completed"; or all')
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _no_input_is_an_empty_one(cls, body: object) -> object:
        if isinstance(body, dict) and body.get("input") is None:
            return {**body, "input": {}}
        return body


EXAMPLE: Final[dict[str, Any]] = {"input": INPUT_EXAMPLE}


def cog_router(
    engine: Engine,
    jobs: Jobs,
    outputs: Outputs,
    sources: Sources,
    leniency: Leniency,
    playground: Playground | None,
) -> APIRouter:
    """Return the routes of a Cog container; its index is the `playground` for those who prefer HTML."""
    router = APIRouter(route_class=route_class(render_error), tags=["Cog"])
    running = Running()
    as_data = replace(outputs, rule="data")
    answers = described(
        *BODY_ERRORS,
        *ENGINE_ERRORS,
        "not_acceptable",
        "storage_unavailable",
        ok={"application/json": {"schema": RESPONSE_SCHEMA}},
        ok_text="The prediction, also one that failed or was cancelled",
        statuses=STATUSES,
        content={"application/json": {}, "text/plain": {}},
    )
    answers[202] = {"description": "It runs already, or is accepted", "content": answers[200]["content"]}

    @router.head("/", include_in_schema=False)
    @router.get("/", summary="Where things are", responses=described())
    async def index(http: Request) -> Response:
        answer: Response
        if not prefers_html(http.headers.get("accept", "")):
            answer = _json(INDEX)
        elif playground is None:
            answer = RedirectResponse("docs", 303)
        else:
            answer = playground.page(http)
        answer.headers["Vary"] = "Accept"
        return answer

    @router.get("/health-check", summary="How the model is", responses=described())
    async def health_check() -> Response:
        return _json(_health(engine))

    @router.post(
        "/predictions",
        summary="Make pictures",
        responses=answers,
        openapi_extra=json_schema(PredictionBody, EXAMPLE),
    )
    async def predict(http: Request) -> Response:
        body = await read_json(http, PredictionBody)
        if body.id is not None:
            return await answer_once(http, body, body.id)
        return await answer(http, body, f"pred_{secrets.token_hex(8)}")

    @router.put(
        "/predictions/{prediction_id}",
        summary="Make pictures, or tell the state of a prediction that runs",
        responses=answers,
        openapi_extra=json_schema(PredictionBody, EXAMPLE),
    )
    async def predict_once(http: Request, prediction_id: str) -> Response:
        body = await read_json(http, PredictionBody)
        if not PREDICTION_ID.fullmatch(prediction_id):
            raise InvalidRequest(f"id is {shown(prediction_id)}; allowed: {ID_RULE}", field="id")
        if body.id not in (None, prediction_id):
            raise InvalidRequest(
                f"id is {shown(body.id)}; allowed: the id in the address, or none", field="id"
            )
        return await answer_once(http, body, prediction_id)

    @router.post(
        "/predictions/{prediction_id}/cancel",
        summary="End a prediction",
        responses=described("not_found", "storage_unavailable"),
    )
    async def cancel(http: Request, prediction_id: str) -> Response:
        key = JobKey(DIALECT, key_of(http), prediction_id)
        if call := running.find(caller_of(http), prediction_id):
            call.stop()
        elif (job := await jobs.find(key)) is not None and not job.state.final:
            await jobs.cancel(key)
        else:
            return _json({}, 404)
        return _json({})

    async def answer_once(http: Request, body: PredictionBody, name: str) -> Response:
        job = await jobs.find(JobKey(DIALECT, key_of(http), name))
        if job is not None and not job.state.final:
            return _json(prediction(job, None) | {"input": job.input}, 202)
        return told(http, name) or await answer(http, body, name)

    def told(http: Request, name: str) -> Response | None:
        """Tell the state of a prediction that runs under this name, if one does."""
        if (call := running.find(caller_of(http), name)) is None:
            return None
        assert isinstance(call.body, PredictionBody), "nothing else runs here"
        return _json(_state(name, call) | {"input": _sent(call.body)}, 202)

    async def answer(http: Request, body: PredictionBody, name: str) -> Response:
        if "text/event-stream" in accepted_types(http.headers.get("accept", "")):
            raise NotAcceptable("there is no stream of a prediction; allowed: Accept: application/json")
        request = to_request(body.input, engine.model, leniency, id=exchange_of(http).request_id)
        if start := start_of(body.input):
            request = await sources.begin(http, request, start)
            if begun := told(http, name):  # while the picture was decoded
                return begun
        later = http.headers.get("prefer") == ASYNC
        if later or body.webhook is not None:
            job = await accept(http, body, name, request)
            if later:
                return _json({"id": name, "status": job.state.value}, 202)
            ended = await finished_job(jobs, http, job)
            return pictures_response(prediction(ended, await as_data.of(ended, ended.base_url)))
        with running.call(caller_of(http), name, request, body, now=time.monotonic()) as call:
            try:
                work = generate(engine, http, call.request, seeded=bool(body.input.seed))
                result = await call.run(work)
            except (GenerationFailed, Cancelled) as error:
                return _ended_response(http, name, call, error, now=time.monotonic())
        return to_response(name, request, result)

    async def accept(http: Request, body: PredictionBody, name: str, request: GenerationRequest) -> Job:
        webhook = None
        if body.webhook is not None:
            await jobs.webhooks.check(body.webhook, field="webhook")
            webhook = Webhook(
                url=body.webhook, events=tuple({*(body.webhook_events_filter or get_args(Event))})
            )
        wanted = Job(
            key=JobKey(DIALECT, key_of(http), name),
            request=request,
            seeded=bool(body.input.seed),
            input=_sent(body),
            webhook=webhook,
        )
        job = await jobs.find(wanted.key) or await submit_job(jobs, http, wanted)
        if (job.input, job.webhook) != (wanted.input, wanted.webhook):
            message = f"id is {shown(name)}, which another prediction has; allowed: another one"
            raise InvalidRequest(message, field="id")
        return job

    return router


def to_response(name: str, request: GenerationRequest, result: GenerationResult) -> Response:
    """Answer a prediction that succeeded, with its pictures as `data:` addresses."""
    return pictures_response(
        {
            "id": name,
            "output": output_of(result),
            "logs": logs_of(request),
            "metrics": {"predict_time": result.timings.total_s - result.timings.queue_s},
            "status": "succeeded",
        }
    )


def prediction(job: Job, output: list[str] | list[Picture] | None) -> dict[str, Any]:
    """Return a job as a prediction; `output` are its pictures, if it has any."""
    content: dict[str, Any] = {
        "id": job.key.id,
        "logs": "" if job.started_s is None else logs_of(job.request),
        "metrics": {},
        "status": job.state.value,
    }
    if job.state.final and job.started_s is not None and job.completed_s is not None:
        content["metrics"] = {"predict_time": max(0.0, job.completed_s - job.started_s)}
    if output:
        content["output"] = output
    if job.error is not None:
        content["error"] = job.error.message
    return content


def cog_payload(outputs: Outputs) -> Payload:
    """Return what says in a webhook how a prediction is, with its pictures as `data:` addresses."""
    as_data = replace(outputs, rule="data")

    async def payload(delivery: Delivery) -> bytes:
        job = delivery.job
        return pictures_json(prediction(job, await as_data.of(job, job.base_url)))

    return payload


def render_error(request: Request, error: ServerError) -> Response:
    """Answer what no prediction came of: plain text, a list of fields, or `{error, status}`."""
    message = message_of(error)
    match error:
        case MalformedBody() | UnsupportedMediaType():
            body = message.encode()
            return error_response(request, error, body, statuses=STATUSES, media_type="text/plain")
        case NotAcceptable() | NotFound() | MethodNotAllowed() | RequestTooLarge():
            content: object = {"error": message}
        case InvalidRequest():
            content = {"detail": [_detail(error, message)]}
        case _:
            content = {"error": message, "status": "failed"}
    return error_response(request, error, msgspec.json.encode(content), statuses=STATUSES)


def _detail(error: InvalidRequest, message: str) -> dict[str, Any]:
    path = error.field.split(".") if error.field else []
    return {
        "loc": ["body", *(["input", "__root__"] if path == ["input"] else path)],
        "msg": message,
        "type": "value_error.missing" if error.missing else "value_error",
    }


def _sent(body: PredictionBody) -> dict[str, Any]:
    return body.input.model_dump(exclude_unset=True)


def _state(name: str, call: Call) -> dict[str, Any]:
    return {"id": name, "logs": logs_of(call.request), "metrics": {}, "status": "processing"}


def _ended_response(http: Request, name: str, call: Call, error: ServerError, *, now: float) -> Response:
    """Answer a prediction that was accepted and then failed or was cancelled."""
    content = _state(name, call) | {"metrics": {"predict_time": now - call.began_s}, "status": "canceled"}
    if not isinstance(error, Cancelled):
        content |= {"error": message_of(error), "status": "failed"}
    return error_response(http, error, msgspec.json.encode(content), statuses=STATUSES)


def _health(engine: Engine) -> dict[str, Any]:
    """Return whether predictions are welcome; the answer is 200 whatever it says."""
    try:
        loaded = bool(engine.model)
    except NotReady:
        loaded = False
    status = "READY" if engine.ready else "UNHEALTHY"
    return {
        "status": status if loaded else "STARTING",
        "setup": {"status": "succeeded" if loaded else "starting"},
        "version": {"schnell-server": __version__, "python": platform.python_version()},
    }


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
