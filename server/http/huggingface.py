"""Text to image at `/hf`, as Hugging Face's InferenceClient and @huggingface/inference post it.

These clients post to exactly the address that they are given: `/hf`, or `/hf/models/<any name>`. The answer
is the picture itself. Nothing is answered with 503: the JavaScript client repeats that without end and
without waiting, so a request that comes while the model is being loaded is held until it is there.
"""

import asyncio
import contextlib
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import ConfigDict, Field

from server.engine import Engine
from server.errors import NotReady, ServerError
from server.generation import (
    MAX_GUIDANCE_SCALE,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    GenerationRequest,
    GenerationResult,
    ImageFormat,
    ModelInfo,
)
from server.http.accept import accepted_types
from server.http.body import RequestBody, Text, json_schema, read_json
from server.http.calls import generate
from server.http.description import BODY_ERRORS, ENGINE_ERRORS, described
from server.http.errors import STATUS, error_response, message_of, route_class
from server.http.exchange import exchange_of
from server.http.leniency import Leniency
from server.http.native import ANY_IMAGE, IMAGE_TYPES
from server.http.pictures import picture_response
from server.http.seeds import given_or_drawn
from server.http.sizes import Side

HOLD_S: Final = 60.0  # the longest that a request waits for the model to be loaded
STATUSES: Final = {**STATUS, "malformed_body": 422, "not_ready": 500, "worker_lost": 500}


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


class TextToImageBody(RequestBody):
    """`POST /hf`; what is not listed is accepted and ignored."""

    model_config = ConfigDict(extra="ignore")

    inputs: Annotated[
        Text, Field(max_length=MAX_PROMPT_CHARS, description=f"text of at most {MAX_PROMPT_CHARS} characters")
    ]
    parameters: Annotated[Parameters | None, Field(description="an object of parameters")] = None


EXAMPLE: Final[dict[str, Any]] = {
    "inputs": "a red circle",
    "parameters": {"width": 256, "height": 256, "num_inference_steps": 4, "seed": 42},
}


def huggingface_router(engine: Engine, leniency: Leniency) -> APIRouter:
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
        "openapi_extra": json_schema(TextToImageBody, EXAMPLE),
    }

    @router.post("/hf/models/{model:path}", **route)
    async def text_to_image_of(http: Request, model: str) -> Response:
        return await answer(http, model)

    @router.post("/hf/", include_in_schema=False)
    @router.post("/hf", **route)
    async def text_to_image(http: Request) -> Response:
        return await answer(http, None)

    async def answer(http: Request, name: str | None) -> Response:
        body = await read_json(http, TextToImageBody)
        model = await _loaded_model(engine)
        leniency.check_model(name, model, http, field="model")
        request = to_request(
            body, model, leniency, id=exchange_of(http).request_id, accept=http.headers.get("accept", "")
        )
        seeded = body.parameters is not None and body.parameters.seed is not None
        return to_response(await generate(engine, http, request, seeded=seeded))

    return router


def to_request(
    body: TextToImageBody, model: ModelInfo, leniency: Leniency, *, id: str, accept: str
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
        prompt=body.inputs,
        negative_prompt=parameters.negative_prompt or "",
        width=parameters.width or model.default_width,
        height=parameters.height or model.default_height,
        steps=leniency.steps(parameters.num_inference_steps, model, field="parameters.num_inference_steps"),
        guidance_scale=min(guidance or 0.0, MAX_GUIDANCE_SCALE),
        seed=given_or_drawn(parameters.seed),
        max_sequence_length=model.default_sequence_length,
        image_format=image_format,
    )


def to_response(result: GenerationResult) -> Response:
    """Answer with the bytes: Python cannot read anything else here."""
    return picture_response(result.images[0])


def render_error(request: Request, error: ServerError) -> Response:
    """Answer `{"error": text}`."""
    body = msgspec.json.encode({"error": message_of(error)})
    return error_response(request, error, body, statuses=STATUSES)


async def _loaded_model(engine: Engine) -> ModelInfo:
    """Wait for the model to be loaded; raises `NotReady` if that takes too long or never comes."""
    with contextlib.suppress(NotReady):
        return engine.model
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HOLD_S):
            await engine.wait_ready()
    return engine.model
