"""The native API: `POST /v1/generate` with JSON or a form, `GET /v1/generate` for `<img>` tags and caches.

With `Accept: image/*` the answer is the picture itself, with `Accept: text/event-stream` what becomes of the
request while it runs, otherwise JSON with base64.
"""

from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field

from server.engine import Engine
from server.errors import InvalidRequest
from server.generation import (
    MAX_DEADLINE_MS,
    MAX_GUIDANCE_SCALE,
    MAX_IMAGES,
    MAX_PREVIEWS,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_SEQUENCE_LENGTH,
    MAX_SIDE,
    MIN_STRENGTH,
    GenerationRequest,
    ImageFormat,
    ModelInfo,
    Priority,
)
from server.geometry import Borders
from server.http.accept import JSON_TYPES, accepted_types
from server.http.adapter_fields import QUERY_PARAMETER, Loras, asked_in, chosen
from server.http.body import RequestBody, Text, check_query, shown
from server.http.cache_control import CACHE_PARAMETER
from server.http.calls import generate
from server.http.description import BODY_ERRORS, ENGINE_ERRORS, described
from server.http.errors import render_error, route_class
from server.http.event_stream import EVENT_STREAM
from server.http.exchange import exchange_of
from server.http.form import body_schema, read_fields
from server.http.idempotency import KEY_PARAMETER, Once
from server.http.input_pictures import PICTURE_RULE, InputPicture
from server.http.native_answer import EVENTS_EXAMPLE, EVENTS_TEXT, NativeScript, answer_of
from server.http.pictures import picture_response, pictures_response
from server.http.seeds import given_or_drawn
from server.http.sizes import Side
from server.http.sources import REPAINT, STRENGTH_RULE, Sources, Start, check_without_image
from server.http.story import event_response
from server.idempotency import Answers
from server.reuse import picture_key

MIN_SEQUENCE_LENGTH: Final = 16
Border = Annotated[
    int, Field(ge=0, le=MAX_SIDE, description=f"a whole number of pixels from 0 to {MAX_SIDE}")
]
IMAGE_TYPES: Final[dict[str, ImageFormat]] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
ANY_IMAGE: Final[dict[str, ImageFormat]] = {**IMAGE_TYPES, "image/*": "png"}
CACHED_FOR_S: Final = 3600  # then the tag is asked for again, which costs no picture unless the model changed


class GenerateQuery(RequestBody):
    """What an address can say; what is left out takes the model's default."""

    prompt: Annotated[
        Text,
        Field(
            max_length=MAX_PROMPT_CHARS,
            description=f"text of at most {MAX_PROMPT_CHARS} characters, without control characters",
        ),
    ]
    negative_prompt: Annotated[
        Text,
        Field(
            max_length=MAX_PROMPT_CHARS,
            description=f"text of at most {MAX_PROMPT_CHARS} characters; counts with guidance_scale above 1",
        ),
    ] = ""
    width: Side = None
    height: Side = None
    num_inference_steps: Annotated[
        int | Literal["auto"] | None,
        Field(description='a whole number of steps from 1 to the model\'s limit, or "auto": 4 to 1 by load'),
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(
            ge=0,
            le=MAX_GUIDANCE_SCALE,
            description=f"a number from 0 to {MAX_GUIDANCE_SCALE:g}; 0 and 1 are off, above 1 is guidance",
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=0, le=MAX_SEED, description=f"a whole number from 0 to {MAX_SEED}; drawn if absent"),
    ] = None
    num_images: Annotated[
        int,
        Field(
            ge=1, le=MAX_IMAGES, description=f"a whole number from 1 to {MAX_IMAGES}; image i has seed + i"
        ),
    ] = 1
    max_sequence_length: Annotated[
        int | None,
        Field(
            ge=MIN_SEQUENCE_LENGTH,
            le=MAX_SEQUENCE_LENGTH,
            description=f"a whole number of T5 tokens from {MIN_SEQUENCE_LENGTH} to {MAX_SEQUENCE_LENGTH}",
        ),
    ] = None
    output_format: Annotated[ImageFormat | None, Field(description='"png", "jpeg" or "webp"')] = None
    output_quality: Annotated[
        int, Field(ge=1, le=100, description="a whole number from 1 to 100, for jpeg and webp")
    ] = 90
    embed_prompt: Annotated[bool, Field(description="true or false: write the prompt into the file")] = False
    priority: Annotated[
        Literal["high", "normal", "low"] | None,
        Field(
            description='"high", "normal" or "low"; that of the API key if absent, which is also the highest'
        ),
    ] = None
    deadline_ms: Annotated[
        int | None,
        Field(
            ge=1,
            le=MAX_DEADLINE_MS,
            description=f"a whole number of milliseconds from 1 to {MAX_DEADLINE_MS}",
        ),
    ] = None
    previews: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_PREVIEWS,
            description=f"a whole number from 0 to {MAX_PREVIEWS}, of each picture in a stream of events",
        ),
    ] = 0
    loras: Loras = None


class Outpaint(RequestBody):
    """New area around a picture."""

    left: Border = 0
    right: Border = 0
    top: Border = 0
    bottom: Border = 0


class GenerateBody(GenerateQuery):
    """The request of the native API: with a picture it starts from that."""

    image: Annotated[
        InputPicture | None,
        Field(description=f"{PICTURE_RULE}; its size is that of the answer, if none is named"),
    ] = None
    mask_image: Annotated[
        InputPicture | None, Field(description=f"{PICTURE_RULE}; what is white in it is drawn anew")
    ] = None
    strength: Annotated[
        float | None,
        Field(ge=MIN_STRENGTH, le=1, description=f"{STRENGTH_RULE}; with outpaint {REPAINT:g}"),
    ] = None
    outpaint: Annotated[
        Outpaint | None,
        Field(
            description=f"an object of left, right, top and bottom: pixels from 0 to {MAX_SIDE} around image"
        ),
    ] = None
    preserve: Annotated[
        bool | None,
        Field(description="true or false: paste back what is kept, which is so unless this is false"),
    ] = None


EXAMPLE: Final[dict[str, Any]] = {
    "prompt": "a red circle on a blue background",
    "width": 256,
    "height": 256,
    "num_inference_steps": 4,
    "seed": 42,
}


DESCRIBED: Final = described(
    "malformed_header",
    "idempotency_key_reused",
    *BODY_ERRORS,
    *ENGINE_ERRORS,
    ok={media_type: {} for media_type in (*IMAGE_TYPES, "application/json")},
    ok_text="The picture, or JSON with base64",
)
DESCRIBED_POST: Final = DESCRIBED | {
    200: {
        "description": EVENTS_TEXT,
        "content": DESCRIBED[200]["content"] | {EVENT_STREAM: {"example": EVENTS_EXAMPLE}},
    }
}


def native_router(engine: Engine, answers: Answers, sources: Sources) -> APIRouter:
    """Return the routes under `/v1/generate`."""
    router = APIRouter(route_class=route_class(render_error), tags=["native"])

    @router.post(
        "/v1/generate",
        summary="Make pictures",
        responses=DESCRIBED_POST,
        openapi_extra=body_schema(GenerateBody, EXAMPLE) | {"parameters": [KEY_PARAMETER, CACHE_PARAMETER]},
    )
    async def post_generate(http: Request) -> Response:
        body = await read_fields(http, GenerateBody)
        accepted = accepted_types(http.headers.get("accept", ""))
        known = [each for each in accepted if each in ANY_IMAGE or each in (EVENT_STREAM, *JSON_TYPES)]
        raw = bool(known) and known[0] in ANY_IMAGE
        streams = bool(known) and known[0] == EVENT_STREAM
        request = _to_request(
            body,
            engine,
            id=exchange_of(http).request_id,
            default_format=ANY_IMAGE[known[0]] if raw else "png",
        )
        if raw and request.num_images > 1:
            raise InvalidRequest(
                f"num_images is {request.num_images}; allowed: 1 where Accept asks for the picture itself",
                field="num_images",
            )
        if start := start_of(body):
            request = await sources.begin(http, request, start)
        form = request.image_format if raw else "json"
        once = Once(answers, body, form=form)
        make = partial(generate, engine, http, request, seeded=body.seed is not None, once=once)
        if streams:
            return await event_response(http, NativeScript(request), lambda watch: make(watch=watch))
        _check_no_previews(body)
        result = await make()
        return picture_response(result.images[0]) if raw else pictures_response(answer_of(result))

    @router.get(
        "/v1/generate",
        summary="One picture by its address",
        responses=DESCRIBED,
        openapi_extra=_query_parameters(),
    )
    async def get_generate(http: Request) -> Response:
        body = check_query(http, GenerateQuery)
        _check_no_previews(body)
        accepted = accepted_types(http.headers.get("accept", ""))
        wanted = [ANY_IMAGE[each] for each in accepted if each in ANY_IMAGE]
        request = _to_request(
            body, engine, id=exchange_of(http).request_id, default_format=wanted[0] if wanted else "png"
        )
        if request.num_images > 1:
            message = (
                f"num_images is {request.num_images}; allowed: 1, since the answer is the picture itself"
            )
            raise InvalidRequest(message, field="num_images")
        varies = body.seed is None or body.num_inference_steps == "auto"
        headers = {} if varies else _cache_headers(http, request, engine.model)
        if headers and _is_known(http, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        result = await generate(engine, http, request, seeded=body.seed is not None)
        return picture_response(result.images[0], headers)

    return router


def _to_request(
    body: GenerateQuery, engine: Engine, *, id: str, default_format: ImageFormat
) -> GenerationRequest:
    """Fill in the model's defaults, and check what only the model knows."""
    model = engine.model
    steps = body.num_inference_steps
    if isinstance(steps, int) and not 1 <= steps <= model.max_steps:
        raise InvalidRequest(
            f"num_inference_steps is {shown(steps)}; allowed: a whole number from 1 to {model.max_steps}, "
            'or "auto"',
            field="num_inference_steps",
        )
    if not isinstance(steps, int):
        steps = engine.steps_for_auto() if steps == "auto" else min(model.default_steps, model.max_steps)
    seed = given_or_drawn(body.seed)
    if seed + body.num_images - 1 > MAX_SEED:
        raise InvalidRequest(
            f"seed is {seed} for {body.num_images} images; allowed: seeds up to {MAX_SEED}", field="seed"
        )
    return GenerationRequest(
        id=id,
        prompt=body.prompt,
        negative_prompt=body.negative_prompt,
        width=body.width or model.default_width,
        height=body.height or model.default_height,
        steps=steps,
        guidance_scale=body.guidance_scale or 0.0,
        seed=seed,
        num_images=body.num_images,
        max_sequence_length=body.max_sequence_length or model.default_sequence_length,
        image_format=body.output_format or default_format,
        quality=body.output_quality,
        embed_prompt=body.embed_prompt,
        priority=None if body.priority is None else Priority(body.priority),
        deadline_s=None if body.deadline_ms is None else body.deadline_ms / 1000,
        previews=body.previews,
        adapters=chosen(asked_in(body.loras), model),
    )


def start_of(body: GenerateBody) -> Start | None:
    """Return what the request starts from, if that is a picture; raises `InvalidRequest`."""
    borders = None if body.outpaint is None else Borders(**body.outpaint.model_dump())
    if body.image is None:
        needing = ("mask_image", "strength", "outpaint", "preserve")
        check_without_image({name: getattr(body, name) for name in needing})
        return None
    for name, side in (("width", body.width), ("height", body.height)):
        if borders is not None and side is not None:
            message = (
                f"{name} is {side} beside outpaint; allowed: neither, the picture and its borders have a size"
            )
            raise InvalidRequest(message, field=name)
    return Start(
        image=body.image,
        mask=body.mask_image,
        strength=body.strength,
        borders=borders if borders is not None and any(borders) else None,
        preserve=body.preserve,
        width=body.width,
        height=body.height,
    )


def _check_no_previews(body: GenerateQuery) -> None:
    if body.previews:
        message = f"previews is {body.previews}; allowed: 0 unless POST has Accept: {EVENT_STREAM}"
        raise InvalidRequest(message, field="previews")


def _cache_headers(http: Request, request: GenerationRequest, model: ModelInfo) -> dict[str, str]:
    """A seeded picture is decided by its request and the model, so its tag can be told in advance.

    Where a key is asked for, a cache that many share would give the picture to those who have none.
    """
    caller = exchange_of(http).caller
    for_whom = "private" if caller is not None and caller.name else "public"
    (image,) = request.images()
    tag = picture_key(image, model)
    weak = "" if model.numerics == "exact" else "W/"  # fast numerics: the same picture, not the same bytes
    return {
        "ETag": f'{weak}"{tag}"',
        "Cache-Control": f"{for_whom}, max-age={CACHED_FOR_S}",
        "Vary": "Accept",
    }


def _is_known(http: Request, tag: str) -> bool:
    sent = http.headers.get("if-none-match", "").split(",")
    known = [each.strip().removeprefix("W/") for each in sent]
    return tag.removeprefix("W/") in known or "*" in known


def _query_parameters() -> dict[str, Any]:
    schema = GenerateQuery.model_json_schema()
    return {
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": name in schema["required"],
                "schema": {key: value for key, value in each.items() if key != "description"},
                "description": each.get("description", ""),
            }
            for name, each in schema["properties"].items()
            if name not in ("previews", "loras")
        ]
        + [QUERY_PARAMETER, CACHE_PARAMETER]
    }
