"""The OpenAI Images API under `/v1`, as the official clients speak it.

Lenient where those clients and the interfaces built on them are: unknown fields and model names are
accepted, `auto` is a value everywhere, and steps beyond the model's limit are clamped, unless settings say
otherwise.
"""

import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, ConfigDict, Field

from server.decoding import Fit, Painted
from server.engine import Engine
from server.errors import InvalidRequest, NotFound, ServerError
from server.events import Event
from server.generation import (
    MAX_GUIDANCE_SCALE,
    MAX_PREVIEWS,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_SEQUENCE_LENGTH,
    MAX_SIDE,
    MIN_SIDE,
    MIN_STRENGTH,
    SIDE_MULTIPLE,
    GenerationRequest,
    GenerationResult,
    Image,
    ImageFormat,
    ModelInfo,
    Preview,
)
from server.http import errors
from server.http.adapter_fields import Asked, Loras, asked_in, chosen
from server.http.body import RequestBody, Text, json_schema, read_json
from server.http.cache_control import CACHE_PARAMETER
from server.http.calls import generate
from server.http.description import BODY_ERRORS, ENGINE_ERRORS, described
from server.http.errors import STATUS, route_class
from server.http.event_stream import EVENT_STREAM
from server.http.exchange import exchange_of
from server.http.form import body_schema, read_fields
from server.http.idempotency import KEY_PARAMETER, Once
from server.http.input_pictures import EXAMPLE_PICTURE, PICTURE_RULE, InputPicture
from server.http.leniency import Leniency, adapter_names_of, names_of
from server.http.models import openai_adapter, openai_model
from server.http.native import MIN_SEQUENCE_LENGTH
from server.http.pictures import Picture, pictures_response
from server.http.seeds import given_or_drawn
from server.http.sources import REPAINT, STRENGTH_RULE, Names, Sources, Start
from server.http.story import Words, event_response
from server.idempotency import Answers

MAX_N: Final = 10
URL_MODELS: Final = ("dall-e-2", "dall-e-3")  # who asks for these reads addresses unless it says otherwise
SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
SIZE_RULE: Final = (
    f'"auto" or "WIDTHxHEIGHT", each a multiple of {SIDE_MULTIPLE} from {MIN_SIDE} to {MAX_SIDE}'
)
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

    model: Annotated[
        str | None, Field(description="a name, also that of an adapter; any, unless the server checks names")
    ] = None
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
    stream: Annotated[bool | None, Field(description="true or false: answer with server-sent events")] = None
    partial_images: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_PREVIEWS,
            description=f"a whole number from 0 to {MAX_PREVIEWS}; previews in a stream",
        ),
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
    loras: Loras = None


class EditsBody(ImagesBody):
    """`POST /v1/images/edits`, which clients send as a form; without `size` it is that of `image`."""

    image: Annotated[InputPicture, Field(description=f"{PICTURE_RULE}; one, and no more")]
    mask: Annotated[
        InputPicture | None,
        Field(description="a picture; what is transparent in it is drawn anew, or else what is in image"),
    ] = None
    strength: Annotated[
        float | None,
        Field(ge=MIN_STRENGTH, le=1, description=f"{STRENGTH_RULE}, with a mask {REPAINT:g}"),
    ] = None


EXAMPLE: Final[dict[str, Any]] = {
    "model": "flux-schnell",
    "prompt": "a red circle",
    "n": 1,
    "size": "256x256",
}


EDIT_EXAMPLE: Final = EXAMPLE | {"image": EXAMPLE_PICTURE, "strength": 0.6}
PARAMETERS: Final[dict[str, Any]] = {"parameters": [KEY_PARAMETER, CACHE_PARAMETER]}
PICTURES: Final = described(
    "malformed_header",
    "idempotency_key_reused",
    "not_found",
    *BODY_ERRORS,
    *ENGINE_ERRORS,
    ok={"application/json": {}, EVENT_STREAM: {}},
    ok_text="The pictures; as server-sent events where a stream was asked for",
    statuses=STATUSES,
)


def openai_router(engine: Engine, answers: Answers, sources: Sources, leniency: Leniency) -> APIRouter:
    """Return the routes of the OpenAI dialect."""
    router = APIRouter(route_class=route_class(render_error), tags=["OpenAI"])

    @router.post(
        "/v1/images/generations",
        summary="Make pictures",
        responses=PICTURES,
        openapi_extra=json_schema(ImagesBody, EXAMPLE) | PARAMETERS,
    )
    async def images_generate(http: Request) -> Response:
        body = await read_json(http, ImagesBody)
        return await answer(http, body, requested(http, body), "image_generation")

    @router.post(
        "/v1/images/edits",
        summary="Make pictures of a picture",
        responses=PICTURES,
        openapi_extra=body_schema(EditsBody, EDIT_EXAMPLE) | PARAMETERS,
    )
    async def images_edit(http: Request) -> Response:
        body = await read_fields(http, EditsBody)
        request = await sources.begin(http, requested(http, body), start_of(body))
        return await answer(http, body, request, "image_edit")

    def requested(http: Request, body: ImagesBody) -> GenerationRequest:
        if body.model not in adapter_names_of(engine.model):
            leniency.check_model(body.model, engine.model, http, field="model")
        return to_request(body, engine.model, leniency, id=exchange_of(http).request_id)

    async def answer(http: Request, body: ImagesBody, request: GenerationRequest, kind: str) -> Response:
        make = partial(
            generate,
            engine,
            http,
            request,
            seeded=body.seed is not None,
            once=Once(answers, body, form="json"),
        )
        if body.stream:
            return await event_response(http, OpenAIScript(request, kind), lambda watch: make(watch=watch))
        return to_response(body, request, await make())

    @router.get("/v1/models", summary="The names of the model", responses=described("not_ready"))
    async def list_models() -> Response:
        models = [openai_model(name) for name in names_of(engine.model)]
        adapters = [openai_adapter(name) for name in adapter_names_of(engine.model)]
        return _json({"object": "list", "data": models + adapters})

    @router.get("/v1/models/{name:path}", summary="The model", responses=described("not_found", "not_ready"))
    async def retrieve_model(name: str) -> Response:
        if name in adapter_names_of(engine.model):
            return _json(openai_adapter(name))
        if name not in names_of(engine.model):
            known = ", ".join((*names_of(engine.model), *adapter_names_of(engine.model)))
            raise NotFound(f"there is no model {name[:100]!a}; there are: {known}", field="model")
        return _json(openai_model(name))

    return router


def to_request(body: ImagesBody, model: ModelInfo, leniency: Leniency, *, id: str) -> GenerationRequest:
    """Fill in the model's defaults; raises `InvalidRequest`."""
    width, height = _size(body) or (body.width or model.default_width, body.height or model.default_height)
    guidance = body.guidance_scale if model.guidance_embed else body.true_cfg_scale
    return GenerationRequest(
        id=id,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt or "",
        width=width,
        height=height,
        steps=leniency.steps(body.num_inference_steps, model, field="num_inference_steps"),
        guidance_scale=min(guidance or 0.0, MAX_GUIDANCE_SCALE),
        seed=given_or_drawn(body.seed),
        num_images=body.n or 1,
        max_sequence_length=body.max_sequence_length or model.default_sequence_length,
        image_format=body.output_format or "png",
        quality=max(1, body.output_compression) if body.output_compression is not None else 100,
        previews=body.partial_images or 0 if body.stream else 0,
        adapters=chosen([*_adapter_by_model(body, model), *asked_in(body.loras)], model),
    )


def _adapter_by_model(body: ImagesBody, model: ModelInfo) -> list[Asked]:
    """Return the adapter whose name was asked for as that of a model."""
    if body.model is not None and body.model in adapter_names_of(model):
        return [Asked(body.model, 1.0, "model")]
    return []


def start_of(body: EditsBody) -> Start:
    """Return what a request starts from. A size of another proportion is covered, and the rest cut off."""
    width, height = _size(body) or (body.width, body.height)
    return Start(
        image=body.image,
        mask=body.mask,
        strength=body.strength,
        mask_strength=REPAINT,
        width=width,
        height=height,
        fit=Fit.CROP,
        painted=Painted.CLEAR,
        clear_is_mask=True,
        names=Names(mask="mask"),
    )


def _size(body: ImagesBody) -> tuple[int, int] | None:
    """Return width and height where both are said; raises `InvalidRequest` for what cannot be made."""
    for name, side in (("width", body.width), ("height", body.height)):
        if side is not None:
            _check_side(side, shown=f"{name} is {side}", field=name)
    if body.width is not None or body.height is not None:
        return None if body.width is None or body.height is None else (body.width, body.height)
    if body.size is None or body.size == "auto":
        return None
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


def to_response(body: ImagesBody, request: GenerationRequest, result: GenerationResult) -> Response:
    """Answer with base64, or with `data:` addresses where `url` was asked for."""
    return pictures_response(
        {
            "created": result.created,
            "data": [_datum(body, image) for image in result.images],
            "background": "opaque",
            "output_format": request.image_format,
            "size": f"{request.width}x{request.height}",
        }
    )


@dataclass(frozen=True, slots=True)
class OpenAIScript:
    """The events of a stream: those of several pictures are told apart by their seeds, which is our addition.

    There is no `usage`: the text is tokenized elsewhere.
    """

    request: GenerationRequest
    kind: str = "image_generation"

    def tell(self, number: int, event: Event) -> Words | None:
        """Show previews as partial images; each picture completes on its own."""
        match event:
            case Preview(index=index, data=data):
                return self._picture("partial_image", number, data, partial_image_index=index)
            case Image(data=data):
                return self._picture("completed", number, data)
            case _:
                return None

    def end(self, made: GenerationResult, told: Collection[int]) -> list[Words]:
        """The last picture was the end."""
        untold = [(number, image) for number, image in enumerate(made.images) if number not in told]
        return [self._picture("completed", number, image.data) for number, image in untold]

    def fail(self, error: ServerError) -> Words:
        """Clients raise on anything with an `error`."""
        kind = errors.error_kind(STATUSES[error.code])
        return "error", {"type": "error", "error": errors.error_object(error, self.request.id, kind)}

    def _picture(self, kind: str, number: int, data: bytes, **more: int) -> Words:
        name = f"{self.kind}.{kind}"
        return name, {
            "type": name,
            "b64_json": Picture(data),
            **more,
            "created_at": int(time.time()),
            "size": f"{self.request.width}x{self.request.height}",
            "quality": "auto",
            "background": "opaque",
            "output_format": self.request.image_format,
            "seed": self.request.seed + number,
        }


def render_error(request: Request, error: ServerError) -> Response:
    """Answer a failure as this API does: a wrong value is a bad request, no model has a code of its own."""
    if isinstance(error, NotFound) and error.field == "model":
        content = errors.error_object(error, exchange_of(request).request_id, errors.error_kind(404))
        body = msgspec.json.encode({"error": content | {"code": "model_not_found"}})
        return errors.error_response(request, error, body, statuses=STATUSES)
    return errors.render_error(request, error, statuses=STATUSES)


def _datum(body: ImagesBody, image: Image) -> dict[str, Any]:
    default = "url" if body.model in URL_MODELS else "b64_json"
    if (body.response_format or default) == "url":
        return {"url": Picture(image.data, prefix=f"data:{image.content_type};base64,"), "seed": image.seed}
    return {"b64_json": Picture(image.data), "seed": image.seed}


def _json(content: dict[str, Any]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
