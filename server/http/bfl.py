"""Black Forest Labs' API at `/bfl/v1`: a request is put in under the name of a model and then asked after.

Every model of theirs is the one that is served. `steps` and `guidance` are those of other models, so clients
send 28 steps. Their webhook's body is not published in full: ours says what `get_result` would say.
"""

import math
import uuid
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from server.decoding import Fit
from server.engine import Engine
from server.errors import InvalidRequest, NotFound, ServerError
from server.generation import (
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    MIN_STRENGTH,
    SIDE_MULTIPLE,
    GenerationRequest,
    ModelInfo,
)
from server.http.body import RequestBody, Text, json_schema, read_json
from server.http.calls import submit_job
from server.http.description import BODY_ERRORS, KEY_ERRORS, described
from server.http.errors import STATUS, error_response, message_of, route_class
from server.http.exchange import key_of
from server.http.input_pictures import BASE64_RULE, InputPicture
from server.http.leniency import Leniency
from server.http.models import model_if_loaded
from server.http.outputs import Outputs
from server.http.pictures import Picture, pictures_response
from server.http.seeds import given_or_drawn
from server.http.sizes import nearest_size
from server.http.sources import REPAINT, Names, Sources, Start, check_without_image
from server.job import Job, JobKey, JobState, Webhook
from server.job_store import Delivery
from server.jobs import Jobs
from server.webhooks import Payload

DIALECT: Final = "bfl"
MODELS: Final = ("flux-schnell", "flux-dev", "flux-pro", "flux-pro-1.1")
DEFAULT_SIZE: Final = (1024, 768)
MEGAPIXEL: Final = 1024 * 1024
RATIO: Final = r"^[1-9][0-9]{0,4}:[1-9][0-9]{0,4}$"
RATIO_RULE: Final = "two whole numbers such as 16:9; counts where width and height are not given"
SIDE_RULE: Final = (
    f"pixels from 1 to 14142; what is beyond {MAX_SIDE} is made smaller in proportion, then sides are "
    f"rounded to multiples of {SIDE_MULTIPLE} from {MIN_SIDE}"
)
STATUSES: Final = {**STATUS, "malformed_body": 422, "quota_exceeded": 402}

AnySide = Annotated[int | None, Field(ge=1, le=14142, description=SIDE_RULE)]


class FluxBody(RequestBody):
    """`POST /bfl/v1/{model}`; what is not listed is accepted and ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[
        Text, Field(max_length=MAX_PROMPT_CHARS, description=f"text of at most {MAX_PROMPT_CHARS} characters")
    ]
    width: AnySide = None
    height: AnySide = None
    aspect_ratio: Annotated[str | None, Field(pattern=RATIO, description=RATIO_RULE)] = None
    steps: Annotated[
        int | None, Field(ge=1, le=1000, description="a whole number of steps from 1 to the model's limit")
    ] = None
    guidance: Annotated[
        float | None, Field(ge=0, le=1000, description="a number; counts on guidance-distilled weights only")
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, le=MAX_SEED, description=f"a whole number from 0 to {MAX_SEED}")
    ] = None
    output_format: Annotated[Literal["jpeg", "png"] | None, Field(description='"jpeg" or "png"')] = None
    webhook_url: Annotated[str | None, Field(description="the URL to call")] = None
    image_prompt: Annotated[
        InputPicture | None, Field(description=f"{BASE64_RULE}; or its URL, where the server allows that")
    ] = None
    input_image: Annotated[
        InputPicture | None, Field(description="the same under the name of newer models; goes first")
    ] = None
    mask: Annotated[
        InputPicture | None, Field(description=f"{BASE64_RULE}; what is white in it is drawn anew")
    ] = None
    image_prompt_strength: Annotated[
        float | None,
        Field(ge=0, le=1, description="a number from 0 to 1: how much is kept of the picture, 0.4 if absent"),
    ] = None


EXAMPLE: Final[dict[str, Any]] = {"prompt": "a red circle", "width": 256, "height": 256, "seed": 42}
SUBMITTED: Final = described(
    *BODY_ERRORS,
    *KEY_ERRORS,
    "not_found",
    "overloaded",
    "not_ready",
    "storage_unavailable",
    statuses=STATUSES,
)
FOUND: Final = described("not_found", "storage_unavailable", statuses=STATUSES)


def bfl_router(
    engine: Engine, jobs: Jobs, outputs: Outputs, sources: Sources, leniency: Leniency
) -> APIRouter:
    """Return the routes under `/bfl/v1`."""
    router = APIRouter(prefix="/bfl/v1", route_class=route_class(render_error), tags=["Black Forest Labs"])

    @router.post(
        "/{model}",
        summary="Put in a request",
        responses=SUBMITTED,
        openapi_extra=json_schema(FluxBody, EXAMPLE),
    )
    async def submit(http: Request, model: str) -> Response:
        body = await read_json(http, FluxBody)
        served = model_if_loaded(engine)
        if served is not None and model not in MODELS:
            leniency.check_model(model, served, http, field="model")
        webhook = None
        if body.webhook_url is not None:
            await jobs.webhooks.check(body.webhook_url, field="webhook_url")
            webhook = Webhook(url=body.webhook_url, events=("completed",))
        base_url = outputs.base_url(http)
        request = to_request(body, served, leniency, id="")
        if start := start_of(body):
            request = await sources.begin(http, request, start)
        wanted = Job(
            key=JobKey(DIALECT, key_of(http), str(uuid.uuid4())),
            request=request,
            seeded=body.seed is not None,
            input={"model": model},
            base_url=base_url,
            webhook=webhook,
        )
        job = await submit_job(jobs, http, wanted)
        address = f"{base_url}/bfl/v1/get_result?id={job.key.id}"
        return pictures_response({"id": job.key.id, "polling_url": address})

    @router.get("/get_result", summary="How a request is, and its picture", responses=FOUND)
    async def get_result(http: Request, id: str = "") -> Response:
        job = await jobs.get(JobKey(DIALECT, key_of(http), id))
        return await to_response(job, outputs, outputs.base_url(http))

    return router


def to_request(body: FluxBody, model: ModelInfo | None, leniency: Leniency, *, id: str) -> GenerationRequest:
    """Fill in the model's defaults; raises `InvalidRequest`."""
    width, height = size_of(body)
    fit = leniency.fit(model, steps=body.steps, field="steps", guidance=body.guidance)
    return GenerationRequest(
        id=id,
        prompt=body.prompt,
        width=width,
        height=height,
        steps=fit.steps,
        guidance_scale=fit.guidance_scale,
        seed=given_or_drawn(body.seed),
        max_sequence_length=fit.sequence_length,
        image_format=body.output_format or "jpeg",
    )


def start_of(body: FluxBody) -> Start | None:
    """Return what a request starts from, if that is a picture; raises `InvalidRequest` for a mask alone.

    A size of another proportion is covered, and the rest cut off.
    """
    names = Names(image="image_prompt" if body.input_image is None else "input_image", mask="mask")
    image: InputPicture | None = getattr(body, names.image)
    if image is None:
        check_without_image({names.mask: body.mask}, image=names.image)
        return None
    kept = body.image_prompt_strength
    named = body.model_fields_set & {"width", "height", "aspect_ratio"}
    width, height = size_of(body) if named else (None, None)
    return Start(
        image=image,
        mask=body.mask,
        strength=None if kept is None else max(MIN_STRENGTH, 1 - kept),
        mask_strength=REPAINT,
        width=width,
        height=height,
        fit=Fit.CROP,
        bare=True,
        names=names,
    )


def size_of(body: FluxBody) -> tuple[int, int]:
    """Return width and height: those that are given, else one megapixel of the ratio."""
    if body.width is None and body.height is None and body.aspect_ratio is not None:
        width, height = (int(each) for each in body.aspect_ratio.split(":"))
        scale = math.sqrt(MEGAPIXEL / (width * height))
        return nearest_size(width * scale, height * scale)
    return nearest_size(body.width or DEFAULT_SIZE[0], body.height or DEFAULT_SIZE[1])


async def to_response(job: Job, outputs: Outputs, base_url: str) -> Response:
    """Answer how a request is; its picture as the server's rule has it."""
    samples = await outputs.of(job, base_url)
    if job.state is JobState.SUCCEEDED and not samples:
        raise NotFound("the picture of this request has expired", field="id")
    return pictures_response(result_of(job, samples))


def result_of(job: Job, samples: list[str] | list[Picture] | None) -> dict[str, Any]:
    """Return how a request is, as clients know it."""
    content: dict[str, Any] = {"id": job.key.id, "status": "Pending", "result": None}
    if job.state is JobState.SUCCEEDED and samples:
        begin_s, end_s = job.started_s or job.created_s, job.completed_s or job.created_s
        content["status"] = "Ready"
        content["result"] = {
            "sample": samples[0],
            "prompt": job.request.prompt,
            "seed": job.request.seed,
            "start_time": begin_s,
            "end_time": end_s,
            "duration": end_s - begin_s,
        }
    elif job.state.final:
        reason = "the request was cancelled" if job.error is None else job.error.message
        content |= {"status": "Error", "details": {"message": reason}}
    return content


def bfl_payload(outputs: Outputs) -> Payload:
    """Return what says in a webhook how a request ended; its picture is an address, never data."""

    async def payload(delivery: Delivery) -> bytes:
        job = delivery.job
        return msgspec.json.encode(result_of(job, outputs.urls(job, job.base_url)))

    return payload


def render_error(request: Request, error: ServerError) -> Response:
    """Answer a list of what is wrong with the input, or what went wrong."""
    message = message_of(error)
    content: dict[str, Any] = {"detail": message}
    if isinstance(error, InvalidRequest) and STATUSES[error.code] == 422:
        path = error.field.split(".") if error.field else []
        kind = "missing" if error.missing else "value_error"
        content = {"detail": [{"loc": ["body", *path], "msg": message, "type": kind}]}
    elif isinstance(error, NotFound) and error.field == "id":
        content = {"status": "Task not found", "result": None, **content}
    return error_response(request, error, msgspec.json.encode(content), statuses=STATUSES)
