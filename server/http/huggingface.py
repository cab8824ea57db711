"""Text to image and image to image at `/hf`, as Hugging Face's clients for Python and JavaScript post them.

These clients post to exactly the address that they are given: `/hf`, or `/hf/models/<any name>`, and call the
text and the picture both `inputs`: with a `prompt` among the parameters it is the picture. The answer is the
picture itself. Nothing is answered with 503: the JavaScript client repeats that without end and
without waiting, so a request that comes while the model is being loaded is held until it is there.
"""

import asyncio
import contextlib
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from server.decoding import Fit
from server.engine import Engine
from server.errors import NotReady, ServerError
from server.generation import (
    MAX_GUIDANCE_SCALE,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MIN_STRENGTH,
    GenerationRequest,
    GenerationResult,
    ImageFormat,
    ModelInfo,
)
from server.http.accept import accepted_types
from server.http.body import RequestBody, Text, check_media_type, json_schema, read_body, read_json
from server.http.calls import generate
from server.http.description import BODY_ERRORS, ENGINE_ERRORS, described
from server.http.errors import STATUS, error_response, message_of, route_class
from server.http.exchange import exchange_of
from server.http.input_pictures import BASE64_RULE, TYPES, InputPicture
from server.http.leniency import Leniency
from server.http.native import ANY_IMAGE, IMAGE_TYPES
from server.http.pictures import picture_response
from server.http.seeds import given_or_drawn
from server.http.sizes import Side
from server.http.sources import STRENGTH_RULE, Names, Sources, Start

JSON: Final = "application/json"
RAW_TYPES: Final = (*IMAGE_TYPES, "application/octet-stream", "")
BASE64_HEADS: Final = ("data:image/", "iVBORw0KGgo", "/9j/", "UklGR")  # of PNG, JPEG and WebP
HOLD_S: Final = 60.0  # the longest that a request waits for the model to be loaded
STATUSES: Final = {**STATUS, "malformed_body": 422, "not_ready": 500, "worker_lost": 500}


class TargetSize(RequestBody):
    """The size of an answer to a picture."""

    width: Side = None
    height: Side = None


class Parameters(RequestBody):
    """What can be said of the picture beside its text; what is not listed is accepted and ignored."""

    model_config = ConfigDict(extra="ignore")

    negative_prompt: Annotated[
        Text | None, Field(max_length=MAX_PROMPT_CHARS, description="text; accepted and ignored")
    ] = None
    width: Side = None
    height: Side = None
    num_inference_steps: Annotated[
        int | None, Field(ge=1, le=1000, description="a whole number of steps from 1")
    ] = None
    guidance_scale: Annotated[
        float | None, Field(ge=0, le=1000, description="a number; counts on guidance-distilled weights only")
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, le=MAX_SEED, description=f"a whole number from 0 to {MAX_SEED}")
    ] = None
    output_format: Annotated[
        ImageFormat | Literal["jpg"] | None,
        Field(description='"png", "jpeg", "jpg" or "webp"; goes before Accept'),
    ] = None
    prompt: Annotated[
        Text | None,
        Field(max_length=MAX_PROMPT_CHARS, description="text; with it inputs is a picture to start from"),
    ] = None
    strength: Annotated[
        float | None, Field(ge=MIN_STRENGTH, le=1, description=f"{STRENGTH_RULE}; counts with a picture")
    ] = None
    target_size: Annotated[
        TargetSize | None, Field(description="an object of width and height, those of a picture's answer")
    ] = None


class InputsBody(RequestBody):
    """`POST /hf`; what is not listed is accepted and ignored. `picture` is what came as `inputs`."""

    model_config = ConfigDict(extra="ignore")

    inputs: Annotated[
        Text,
        Field(
            max_length=MAX_PROMPT_CHARS,
            description=f"text of at most {MAX_PROMPT_CHARS} characters; if parameters.prompt is the text, "
            f"{BASE64_RULE}",
        ),
    ]
    parameters: Annotated[Parameters | None, Field(description="an object of parameters")] = None
    picture: SkipJsonSchema[InputPicture | None] = None

    @model_validator(mode="before")
    @classmethod
    def _tell_pictures_from_text(cls, body: object) -> object:
        if not isinstance(body, dict):
            return body
        inputs, parameters = body.get("inputs"), body.get("parameters")
        prompted = isinstance(parameters, dict) and parameters.get("prompt") is not None
        if isinstance(inputs, str) and (prompted or inputs.startswith(BASE64_HEADS)):
            return body | {"inputs": "", "picture": inputs}
        return body | {"picture": None}


EXAMPLE: Final[dict[str, Any]] = {
    "inputs": "a red circle",
    "parameters": {"width": 256, "height": 256, "num_inference_steps": 4, "seed": 42},
}


def huggingface_router(engine: Engine, sources: Sources, leniency: Leniency) -> APIRouter:
    """Return the routes under `/hf`."""
    router = APIRouter(route_class=route_class(render_error), tags=["Hugging Face"])
    route: dict[str, Any] = {
        "summary": "Make a picture",
        "response_class": Response,
        "responses": described(
            *BODY_ERRORS,
            *ENGINE_ERRORS,
            "not_found",
            ok={kind: {} for kind in IMAGE_TYPES},
            ok_text="The picture",
            statuses=STATUSES,
        ),
        "openapi_extra": _raw_too(json_schema(InputsBody, EXAMPLE)),
    }

    @router.post("/hf/models/{model:path}", **route)
    async def text_to_image_of(http: Request, model: str) -> Response:
        return await answer(http, model)

    @router.post("/hf/", include_in_schema=False)
    @router.post("/hf", **route)
    async def text_to_image(http: Request) -> Response:
        return await answer(http, None)

    async def answer(http: Request, name: str | None) -> Response:
        body = await read_inputs(http)
        model = await _loaded_model(engine)
        leniency.check_model(name, model, http, field="model")
        request = to_request(
            body, model, leniency, id=exchange_of(http).request_id, accept=http.headers.get("accept", "")
        )
        if start := start_of(body):
            request = await sources.begin(http, request, start)
        seeded = body.parameters is not None and body.parameters.seed is not None
        return to_response(await generate(engine, http, request, seeded=seeded))

    return router


def to_request(
    body: InputsBody, model: ModelInfo, leniency: Leniency, *, id: str, accept: str
) -> GenerationRequest:
    """Fill in the model's defaults; raises `InvalidRequest`."""
    parameters = body.parameters or Parameters()
    wanted = [ANY_IMAGE[each] for each in accepted_types(accept) if each in ANY_IMAGE]
    image_format: ImageFormat = wanted[0] if wanted else "png"
    if parameters.output_format is not None:
        image_format = "jpeg" if parameters.output_format == "jpg" else parameters.output_format
    guidance = parameters.guidance_scale if model.guidance_embed else None
    return GenerationRequest(
        id=id,
        prompt=body.inputs or parameters.prompt or "",
        negative_prompt=parameters.negative_prompt or "",
        width=parameters.width or model.default_width,
        height=parameters.height or model.default_height,
        steps=leniency.steps(parameters.num_inference_steps, model, field="parameters.num_inference_steps"),
        guidance_scale=min(guidance or 0.0, MAX_GUIDANCE_SCALE),
        seed=given_or_drawn(parameters.seed),
        max_sequence_length=model.default_sequence_length,
        image_format=image_format,
    )


async def read_inputs(http: Request) -> InputsBody:
    """Return the body; a client that has nothing to say of its picture sends the file itself."""
    if check_media_type(http, JSON, *RAW_TYPES) == JSON:
        return await read_json(http, InputsBody)
    data = await read_body(http)
    if not data.startswith(tuple(TYPES)):  # then a type that says nothing was no good one
        check_media_type(http, JSON, *IMAGE_TYPES)
    return InputsBody(inputs="").model_copy(update={"picture": InputPicture(data)})


def start_of(body: InputsBody) -> Start | None:
    """Return what a request starts from, if that is a picture. A size of another proportion is covered."""
    if body.picture is None:
        return None
    parameters = body.parameters or Parameters()
    size = parameters.target_size or parameters
    return Start(
        image=body.picture,
        strength=parameters.strength,
        width=size.width,
        height=size.height,
        fit=Fit.CROP,
        bare=True,
        names=Names(image="inputs"),
    )


def to_response(result: GenerationResult) -> Response:
    """Answer with the bytes: Python cannot read anything else here."""
    return picture_response(result.images[0])


def render_error(request: Request, error: ServerError) -> Response:
    """Answer `{"error": text}`."""
    body = msgspec.json.encode({"error": message_of(error)})
    return error_response(request, error, body, statuses=STATUSES)


def _raw_too(schema: dict[str, Any]) -> dict[str, Any]:
    """Add to the description of a body that it may be a file."""
    for kind in IMAGE_TYPES:
        schema["requestBody"]["content"][kind] = {"schema": {"type": "string", "format": "binary"}}
    return schema


async def _loaded_model(engine: Engine) -> ModelInfo:
    """Wait for the model to be loaded; raises `NotReady` if that takes too long or never comes."""
    with contextlib.suppress(NotReady):
        return engine.model
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HOLD_S):
            await engine.wait_ready()
    return engine.model
