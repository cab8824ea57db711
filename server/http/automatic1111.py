"""AUTOMATIC1111's web API under `/sdapi/v1`: what self-hosted interfaces call to find and use a server.

There is one model and one sampler: what would choose another is accepted and ignored, as are the settings
of other networks (`cfg_scale`, `negative_prompt`, `enable_hr`, scripts). Sides are rounded down to what the
model can make, as the original does. What lists have nothing to list are empty.
"""

import os
import re
import secrets
import time
from collections.abc import Iterator
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, ConfigDict, Field

from server.decoding import Fit, Painted
from server.engine import Engine
from server.errors import InvalidRequest, ServerError
from server.generation import (
    MAX_GUIDANCE_SCALE,
    MAX_IMAGES,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    MIN_STRENGTH,
    SIDE_MULTIPLE,
    GenerationRequest,
    GenerationResult,
    ModelInfo,
)
from server.http.adapter_fields import SCALE_RULE, Asked, chosen
from server.http.automatic1111_answer import HASH_CHARS, SAMPLER, info_of, options_of, progress_of, title_of
from server.http.body import RequestBody, Text, json_schema, read_json
from server.http.calls import generate
from server.http.description import BODY_ERRORS, ENGINE_ERRORS, described
from server.http.errors import error_response, message_of, route_class
from server.http.exchange import exchange_of
from server.http.input_pictures import BASE64_RULE, EXAMPLE_PICTURE, InputPicture
from server.http.leniency import Leniency
from server.http.pictures import Picture, pictures_response
from server.http.running import Running, caller_of
from server.http.seeds import given_or_drawn
from server.http.sources import Names, Sources, Start

DEFAULT_SIDE: Final = 512
DEFAULT_DENOISING: Final = 0.75
DEFAULT_BLUR: Final = 4
MAX_BLUR: Final = 64
FITS: Final = (Fit.STRETCH, Fit.CROP, Fit.FILL, Fit.STRETCH)
SAMPLERS: Final = [{"name": SAMPLER, "aliases": ["k_euler"], "options": {}}]
SCHEDULERS: Final = [
    {"name": "simple", "label": "Simple", "aliases": None, "default_rho": -1.0, "need_inner_model": False}
]
NOTHING_TO_LIST: Final = ("upscalers", "latent-upscale-modes", "sd-vae")
LORA: Final = re.compile(
    r"<lora:([^:<>]+)((?::[^:<>]+){0,2})>"
)  # the weights are its text encoders' and its own

RoundedSide = Annotated[
    int,
    Field(
        ge=MIN_SIDE,
        lt=MAX_SIDE + SIDE_MULTIPLE,
        description=f"pixels from {MIN_SIDE} to {MAX_SIDE}; rounded down to a multiple of {SIDE_MULTIPLE}",
    ),
]


class LenientBody(RequestBody):
    """Base of this dialect's bodies: unknown fields are ignored, and "20" is a number."""

    model_config = ConfigDict(extra="ignore", strict=False, populate_by_name=True)


class OptionsBody(LenientBody):
    """`POST /sdapi/v1/options`, and what a request overrides of them."""

    sd_model_checkpoint: Annotated[
        str | None, Field(description="a model's name; any, unless the server checks names")
    ] = None


class TextToImageBody(LenientBody):
    """`POST /sdapi/v1/txt2img`; what is not listed is accepted and ignored."""

    prompt: Annotated[
        Text, Field(max_length=MAX_PROMPT_CHARS, description=f"text of at most {MAX_PROMPT_CHARS} characters")
    ] = ""
    negative_prompt: Annotated[
        Text | None, Field(max_length=MAX_PROMPT_CHARS, description="text; accepted and ignored")
    ] = None
    width: RoundedSide = DEFAULT_SIDE
    height: RoundedSide = DEFAULT_SIDE
    steps: Annotated[int | None, Field(ge=1, le=1000, description="a whole number of steps from 1")] = None
    seed: Annotated[
        int | None,
        Field(ge=-1, le=MAX_SEED - MAX_IMAGES, description="a whole number from 0, or -1 to have one drawn"),
    ] = None
    batch_size: Annotated[int | None, Field(ge=1, le=MAX_IMAGES, description="a whole number from 1")] = None
    n_iter: Annotated[
        int | None,
        Field(ge=1, le=MAX_IMAGES, description=f"a whole number; times batch_size at most {MAX_IMAGES}"),
    ] = None
    cfg_scale: Annotated[float | None, Field(description="a number; accepted and ignored")] = None
    distilled_cfg_scale: Annotated[
        float | None, Field(ge=0, le=1000, description="a number; counts on guidance-distilled weights only")
    ] = None
    sampler_name: Annotated[
        str | None,
        Field(
            validation_alias=AliasChoices("sampler_name", "sampler_index"),
            description="text; accepted and ignored: there is one",
        ),
    ] = None
    send_images: Annotated[bool | None, Field(description="false: answer without the pictures")] = None
    override_settings: Annotated[
        OptionsBody | None, Field(description="an object; of these options only the model is looked at")
    ] = None


class ImageToImageBody(TextToImageBody):
    """`POST /sdapi/v1/img2img`; what is not listed is accepted and ignored."""

    init_images: Annotated[
        list[InputPicture], Field(min_length=1, max_length=1, description=f"a list of one: {BASE64_RULE}")
    ]
    denoising_strength: Annotated[
        float | None,
        Field(
            ge=MIN_STRENGTH,
            le=1,
            description=f"a number from {MIN_STRENGTH} to 1: how much of the picture is drawn anew, "
            f"{DEFAULT_DENOISING} if absent",
        ),
    ] = None
    mask: Annotated[
        InputPicture | None, Field(description=f"{BASE64_RULE}; what is white in it is drawn anew")
    ] = None
    inpainting_mask_invert: Annotated[
        bool | None, Field(description="1 or true: what is black in the mask is drawn anew")
    ] = None
    mask_blur: Annotated[
        float | None,
        Field(
            ge=0,
            le=MAX_BLUR,
            description=f"pixels from 0 to {MAX_BLUR} over which what is kept goes over into what is new",
        ),
    ] = None
    resize_mode: Annotated[
        int | None,
        Field(ge=0, le=3, description="0: stretched, 1: cropped, 2: filled up with its edges, 3: as 0"),
    ] = None


EXAMPLE: Final[dict[str, Any]] = {
    "prompt": "a red circle",
    "width": 256,
    "height": 256,
    "steps": 4,
    "seed": 42,
    "batch_size": 1,
}
PICTURE_EXAMPLE: Final = EXAMPLE | {"init_images": [EXAMPLE_PICTURE], "denoising_strength": 0.6}
MADE: Final = described(*BODY_ERRORS, *ENGINE_ERRORS, "not_found")


def automatic1111_router(engine: Engine, sources: Sources, leniency: Leniency) -> APIRouter:
    """Return the routes under `/sdapi/v1`."""
    router = APIRouter(prefix="/sdapi/v1", route_class=route_class(render_error), tags=["AUTOMATIC1111"])
    running = Running()
    loaded = described("not_ready")

    @router.post(
        "/txt2img",
        summary="Make pictures",
        responses=MADE,
        openapi_extra=json_schema(TextToImageBody, EXAMPLE),
    )
    async def txt2img(http: Request) -> Response:
        body = await read_json(http, TextToImageBody)
        return await answer(http, body, requested(http, body))

    @router.post(
        "/img2img",
        summary="Make pictures of a picture",
        responses=MADE,
        openapi_extra=json_schema(ImageToImageBody, PICTURE_EXAMPLE),
    )
    async def img2img(http: Request) -> Response:
        body = await read_json(http, ImageToImageBody)
        asked = requested(http, body)
        return await answer(http, body, await sources.begin(http, asked, start_of(body, asked)))

    def requested(http: Request, body: TextToImageBody) -> GenerationRequest:
        check_checkpoint(body.override_settings, engine.model, leniency, http)
        return to_request(body, engine.model, leniency, id=exchange_of(http).request_id)

    async def answer(http: Request, body: TextToImageBody, asked: GenerationRequest) -> Response:
        seeded = body.seed is not None and body.seed >= 0
        with running.call(caller_of(http), secrets.token_hex(8), asked, body, now=time.monotonic()) as call:
            result = await call.run(generate(engine, http, call.request, seeded=seeded))
        return to_response(body, asked, result, engine.model)

    @router.post("/interrupt", summary="Stop what this caller has running", responses=described())
    async def interrupt(http: Request) -> Response:
        for call in running.of(caller_of(http)):
            call.stop()
        return _json({})

    @router.get("/progress", summary="How far what this caller has running is", responses=described())
    async def progress(http: Request) -> Response:
        return _json(progress_of(engine, running.of(caller_of(http)), now=time.monotonic()))

    @router.get("/options", summary="Settings", responses=loaded)
    async def options() -> Response:
        return _json(options_of(engine.model))

    @router.post(
        "/options",
        summary="Choose the model that is served; anything else is accepted and ignored",
        responses=described(*BODY_ERRORS, "not_found", "not_ready"),
        openapi_extra=json_schema(OptionsBody, {"sd_model_checkpoint": "flux-schnell"}),
    )
    async def set_options(http: Request) -> Response:
        body = await read_json(http, OptionsBody)
        check_checkpoint(body, engine.model, leniency, http)
        return _json(None)

    @router.get("/sd-models", summary="The model", responses=loaded)
    async def models() -> Response:
        model = engine.model
        return _json(
            [
                {
                    "title": title_of(model),
                    "model_name": model.name,
                    "hash": model.digest[:HASH_CHARS],
                    "sha256": model.digest,
                    "filename": model.name,
                    "config": None,
                }
            ]
        )

    @router.get("/samplers", summary="The sampler", responses=described())
    async def samplers() -> Response:
        return _json(SAMPLERS)

    @router.get("/schedulers", summary="The schedule", responses=described())
    async def schedulers() -> Response:
        return _json(SCHEDULERS)

    @router.get("/memory", summary="Memory of the host", responses=described())
    async def memory() -> Response:
        page = os.sysconf("SC_PAGE_SIZE")
        total, free = (page * os.sysconf(name) for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        return _json(
            {
                "ram": {"free": free, "used": total - free, "total": total},
                "cuda": {"error": "the devices are seen in /metrics"},
            }
        )

    @router.get("/loras", summary="The adapters", responses=loaded)
    async def loras() -> Response:
        return _json(
            [
                {"name": each.name, "alias": each.name, "path": each.name, "metadata": {}}
                for each in engine.model.adapters
            ]
        )

    for each in NOTHING_TO_LIST:

        @router.get(f"/{each}", summary="Nothing to list", responses=described(), name=each)
        async def nothing() -> Response:
            return _json([])

    return router


def check_checkpoint(
    options: OptionsBody | None, model: ModelInfo, leniency: Leniency, http: Request
) -> None:
    """Look at the model that was asked for; its title and its hash are names too."""
    name = options.sd_model_checkpoint if options else None
    if name not in (None, "", title_of(model), model.digest, model.digest[:HASH_CHARS]):
        leniency.check_model(name, model, http, field="sd_model_checkpoint")


def to_request(body: TextToImageBody, model: ModelInfo, leniency: Leniency, *, id: str) -> GenerationRequest:
    """Fill in defaults and round sides down; raises `InvalidRequest`."""
    count = (body.batch_size or 1) * (body.n_iter or 1)
    if count > MAX_IMAGES:
        raise InvalidRequest(
            f"n_iter is {body.n_iter} with batch_size {body.batch_size}; "
            f"allowed: at most {MAX_IMAGES} pictures in all",
            field="n_iter",
        )
    guidance = body.distilled_cfg_scale if model.guidance_embed else None
    return GenerationRequest(
        id=id,
        prompt=LORA.sub("", body.prompt).strip() if LORA.search(body.prompt) else body.prompt,
        negative_prompt=body.negative_prompt or "",
        width=body.width // SIDE_MULTIPLE * SIDE_MULTIPLE,
        height=body.height // SIDE_MULTIPLE * SIDE_MULTIPLE,
        steps=leniency.steps(body.steps, model, field="steps"),
        guidance_scale=min(guidance or 0.0, MAX_GUIDANCE_SCALE),
        seed=given_or_drawn(None if body.seed == -1 else body.seed),
        num_images=count,
        max_sequence_length=model.default_sequence_length,
        adapters=chosen(_adapters_in(body.prompt), model),
    )


def start_of(body: ImageToImageBody, asked: GenerationRequest) -> Start:
    """Return what a request starts from, in the size that it asks for, as the original has it."""
    blur = DEFAULT_BLUR if body.mask_blur is None else round(body.mask_blur)
    return Start(
        image=body.init_images[0],
        mask=body.mask,
        strength=DEFAULT_DENOISING if body.denoising_strength is None else body.denoising_strength,
        width=asked.width,
        height=asked.height,
        fit=FITS[body.resize_mode or 0],
        painted=Painted.DARK if body.inpainting_mask_invert else Painted.LIGHT,
        blur=blur,
        bare=True,
        names=Names(image="init_images", mask="mask"),
    )


def _adapters_in(prompt: str) -> Iterator[Asked]:
    """Yield the adapters that a prompt names, as `<lora:name>` or with weights: the last one counts."""
    for name, weights in LORA.findall(prompt):
        *_, weight = weights.split(":")
        try:
            scale = float(weight or 1.0)
        except ValueError:
            message = f"prompt has {weight[:40]!a} as the weight of an adapter; allowed: {SCALE_RULE}"
            raise InvalidRequest(message, field="prompt") from None
        yield Asked(name, scale, "prompt")


def to_response(
    body: TextToImageBody, request: GenerationRequest, result: GenerationResult, model: ModelInfo
) -> Response:
    """Answer with base64 and, as a string of JSON, with what made the pictures."""
    info = info_of(request, model, prompt=body.prompt, batch_size=body.batch_size or 1)
    return pictures_response(
        {
            "images": [Picture(image.data) for image in result.images if body.send_images is not False],
            "parameters": body.model_dump(exclude={"init_images", "mask"}),
            "info": msgspec.json.encode(info).decode(),
        }
    )


def render_error(request: Request, error: ServerError) -> Response:
    """Answer `{error, detail, body, errors}`; interfaces show `detail` or `errors`."""
    message = message_of(error)
    content = {"error": error.code, "detail": message, "body": "", "errors": message}
    return error_response(request, error, msgspec.json.encode(content))


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
