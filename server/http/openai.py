"""The OpenAI Images API under `/v1`, as the official clients speak it.

Lenient where those clients and the interfaces built on them are: unknown fields and model names are
accepted, `auto` is a value everywhere, and steps beyond the model's limit are clamped.
"""

import re
import secrets
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, ConfigDict, Field

from server.engine import Engine
from server.errors import InvalidRequest, NotFound
from server.generation import (
    DRAWN_SEED_LIMIT,
    MAX_GUIDANCE_SCALE,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_SEQUENCE_LENGTH,
    MAX_SIDE,
    MIN_SIDE,
    SIDE_MULTIPLE,
    GenerationRequest,
    GenerationResult,
    Image,
    ImageFormat,
)
from server.http.body import RequestBody, Text, json_schema, read_json
from server.http.cache_control import CACHE_PARAMETER
from server.http.calls import generate
from server.http.errors import STATUS, render_error, route_class
from server.http.exchange import exchange_of
from server.http.idempotency import KEY_PARAMETER, Once
from server.http.native import MIN_SEQUENCE_LENGTH
from server.http.pictures import Picture, pictures_response
from server.idempotency import Answers

MAX_N: Final = 10
MODEL_IDS: Final = ("flux-schnell", "black-forest-labs/FLUX.1-schnell")
SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
SIZE_RULE: Final = (
    f'"auto" or "WIDTHxHEIGHT", each a multiple of {SIDE_MULTIPLE} from {MIN_SIDE} to {MAX_SIDE}'
)
CREATED: Final = 1722470400  # when FLUX.1 [schnell] was published
STATUSES: Final = {**STATUS, "invalid_request": 400}

Steps = Annotated[
    int | None,
    Field(
        ge=1,
        le=1000,
        validation_alias=AliasChoices("num_inference_steps", "steps", "step"),
        description="a whole number of steps from 1; more than the model takes are clamped",
    ),
]


class ImagesBody(RequestBody):
    """`POST /v1/images/generations`; what is not listed is accepted and ignored."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    prompt: Annotated[
        Text, Field(max_length=MAX_PROMPT_CHARS, description=f"text of at most {MAX_PROMPT_CHARS} characters")
    ]
    n: Annotated[int | None, Field(ge=1, le=MAX_N, description=f"a whole number from 1 to {MAX_N}")] = None
    size: Annotated[str | None, Field(description=SIZE_RULE)] = None
    width: Annotated[int | None, Field(description="pixels; with height it replaces size")] = None
    height: Annotated[int | None, Field(description="pixels; with width it replaces size")] = None
    response_format: Annotated[
        Literal["b64_json", "url"] | None, Field(description='"b64_json" or "url" (a data: address)')
    ] = None
    output_format: Annotated[ImageFormat | None, Field(description='"png", "jpeg" or "webp"')] = None
    output_compression: Annotated[
        int | None, Field(ge=0, le=100, description="a whole number from 0 to 100, for jpeg and webp")
    ] = None
    stream: Annotated[
        Literal[False] | None, Field(description="false; streaming is not supported by this version")
    ] = None
    background: Annotated[
        Literal["auto", "opaque"] | None,
        Field(description='"auto" or "opaque"; pictures have no transparency'),
    ] = None
    negative_prompt: Annotated[
        Text | None,
        Field(max_length=MAX_PROMPT_CHARS, description="text; counts with true_cfg_scale above 1"),
    ] = None
    num_inference_steps: Steps = None
    guidance_scale: Annotated[
        float | None, Field(ge=0, le=1000, description="a number; counts on guidance-distilled weights only")
    ] = None
    true_cfg_scale: Annotated[
        float | None,
        Field(ge=0, le=MAX_GUIDANCE_SCALE, description=f"a number from 0 to {MAX_GUIDANCE_SCALE:g}"),
    ] = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED - MAX_N, description="a whole number from 0")] = None
    max_sequence_length: Annotated[
        int | None,
        Field(
            ge=MIN_SEQUENCE_LENGTH,
            le=MAX_SEQUENCE_LENGTH,
            description=f"a whole number from {MIN_SEQUENCE_LENGTH} to {MAX_SEQUENCE_LENGTH}",
        ),
    ] = None


EXAMPLE: Final[dict[str, Any]] = {
    "model": "flux-schnell",
    "prompt": "a red circle",
    "n": 1,
    "size": "256x256",
}


def openai_router(engine: Engine, answers: Answers) -> APIRouter:
    """Return the routes of the OpenAI dialect."""

    def render(request: Request, error: Any) -> Response:  # noqa: ANN401 - a ServerError
        return render_error(request, error, statuses=STATUSES)

    router = APIRouter(route_class=route_class(render), tags=["OpenAI"])

    @router.post(
        "/v1/images/generations",
        openapi_extra=json_schema(ImagesBody, EXAMPLE) | {"parameters": [KEY_PARAMETER, CACHE_PARAMETER]},
    )
    async def images_generate(http: Request) -> Response:
        body = await read_json(http, ImagesBody)
        request = _to_request(body, engine, id=exchange_of(http).request_id)
        once = Once(answers, body, form="json")
        result = await generate(engine, http, request, seeded=body.seed is not None, once=once)
        return pictures_response(_answer(body, request, result))

    @router.get("/v1/models")
    async def list_models() -> Response:
        return _json({"object": "list", "data": [_model(name) for name in _names(engine)]})

    @router.get("/v1/models/{name:path}")
    async def retrieve_model(name: str) -> Response:
        if name not in _names(engine):
            known = ", ".join(_names(engine))
            raise NotFound(f"there is no model {name[:100]!a}; there are: {known}", field="model")
        return _json(_model(name))

    return router


def _to_request(body: ImagesBody, engine: Engine, *, id: str) -> GenerationRequest:
    model = engine.model
    width, height = _size(body, default=(model.default_width, model.default_height))
    guidance = body.guidance_scale if model.guidance_embed else body.true_cfg_scale
    return GenerationRequest(
        id=id,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        width=width,
        height=height,
        steps=min(body.num_inference_steps or model.default_steps, model.max_steps),
        guidance_scale=min(guidance or 0.0, MAX_GUIDANCE_SCALE),
        seed=secrets.randbelow(DRAWN_SEED_LIMIT) if body.seed is None else body.seed,
        num_images=body.n or 1,
        max_sequence_length=body.max_sequence_length or model.default_sequence_length,
        image_format=body.output_format or "png",
        quality=max(1, body.output_compression) if body.output_compression is not None else 100,
    )


def _size(body: ImagesBody, *, default: tuple[int, int]) -> tuple[int, int]:
    if body.width is not None or body.height is not None:
        sides = (
            default[0] if body.width is None else body.width,
            default[1] if body.height is None else body.height,
        )
        for name, side in zip(("width", "height"), sides, strict=True):
            _check_side(side, shown=f"{name} is {side}", field=name)
        return sides
    if body.size in (None, "auto"):
        return default
    assert body.size is not None, "None is handled above"
    match = SIZE.fullmatch(body.size)
    if match is None:
        raise InvalidRequest(f"size is {body.size[:40]!a}; allowed: {SIZE_RULE}", field="size")
    sides = int(match[1]), int(match[2])
    for side in sides:
        _check_side(side, shown=f'size is "{body.size}"', field="size")
    return sides


def _check_side(side: int, *, shown: str, field: str) -> None:
    if side % SIDE_MULTIPLE or not MIN_SIDE <= side <= MAX_SIDE:
        raise InvalidRequest(f"{shown[:60]}; allowed: {SIZE_RULE}", field=field)


def _answer(body: ImagesBody, request: GenerationRequest, result: GenerationResult) -> dict[str, Any]:
    return {
        "created": result.created,
        "data": [_datum(body, image) for image in result.images],
        "background": "opaque",
        "output_format": request.image_format,
        "size": f"{request.width}x{request.height}",
    }


def _datum(body: ImagesBody, image: Image) -> dict[str, Any]:
    if body.response_format == "url":
        return {"url": Picture(image.data, prefix=f"data:{image.content_type};base64,"), "seed": image.seed}
    return {"b64_json": Picture(image.data), "seed": image.seed}


def _names(engine: Engine) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*MODEL_IDS, engine.model.name)))


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": CREATED, "owned_by": "black-forest-labs"}


def _json(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
