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

from server.engine import Engine
from server.errors import InvalidRequest, ServerError
from server.generation import (
    MAX_GUIDANCE_SCALE,
    MAX_IMAGES,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    SIDE_MULTIPLE,
    GenerationRequest,
    GenerationResult,
    ModelInfo,
)
from server.http.adapter_fields import SCALE_RULE, Asked, chosen
from server.http.body import RequestBody, Text, json_schema, read_json
from server.http.calls import generate
from server.http.description import BODY_ERRORS, ENGINE_ERRORS, described
from server.http.errors import error_response, message_of, route_class
from server.http.exchange import exchange_of
from server.http.leniency import Leniency
from server.http.pictures import Picture, pictures_response
from server.http.running import Running, caller_of
from server.http.seeds import given_or_drawn

DEFAULT_SIDE: Final = 512
HASH_CHARS: Final = 10
SAMPLER: Final = "Euler"
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


EXAMPLE: Final[dict[str, Any]] = {
    "prompt": "a red circle",
    "width": 256,
    "height": 256,
    "steps": 4,
    "seed": 42,
    "batch_size": 1,
}


def automatic1111_router(engine: Engine, leniency: Leniency) -> APIRouter:
    """Return the routes under `/sdapi/v1`."""
    router = APIRouter(prefix="/sdapi/v1", route_class=route_class(render_error), tags=["AUTOMATIC1111"])
    running = Running()
    loaded = described("not_ready")

    @router.post(
        "/txt2img",
        summary="Make pictures",
        responses=described(*BODY_ERRORS, *ENGINE_ERRORS, "not_found"),
        openapi_extra=json_schema(TextToImageBody, EXAMPLE),
    )
    async def txt2img(http: Request) -> Response:
        body = await read_json(http, TextToImageBody)
        check_checkpoint(body.override_settings, engine.model, leniency, http)
        asked = to_request(body, engine.model, leniency, id=exchange_of(http).request_id)
        seeded = body.seed is not None and body.seed >= 0
        with running.call(caller_of(http), secrets.token_hex(8), asked, body, now=time.monotonic()) as call:
            result = await call.run(generate(engine, http, call.request, seeded=seeded))
        return to_response(body, asked, result, engine.model)

    @router.post("/img2img", summary="Not supported yet", responses=described("invalid_request", "not_ready"))
    async def img2img() -> Response:
        raise InvalidRequest("img2img is not supported by this version of the server; allowed: txt2img")

    @router.post("/interrupt", summary="Stop what this caller has running", responses=described())
    async def interrupt(http: Request) -> Response:
        for call in running.of(caller_of(http)):
            call.stop()
        return _json({})

    @router.get("/progress", summary="How far what this caller has running is", responses=described())
    async def progress(http: Request) -> Response:
        return _json(_progress(engine, running, caller_of(http), now=time.monotonic()))

    @router.get("/options", summary="Settings", responses=loaded)
    async def options() -> Response:
        return _json(_options(engine.model))

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
                    "title": _title(model),
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
    if name not in (None, "", _title(model), model.digest, model.digest[:HASH_CHARS]):
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
    return pictures_response(
        {
            "images": [Picture(image.data) for image in result.images if body.send_images is not False],
            "parameters": body.model_dump(),
            "info": msgspec.json.encode(_info(body, request, model)).decode(),
        }
    )


def render_error(request: Request, error: ServerError) -> Response:
    """Answer `{error, detail, body, errors}`; interfaces show `detail` or `errors`."""
    message = message_of(error)
    content = {"error": error.code, "detail": message, "body": "", "errors": message}
    return error_response(request, error, msgspec.json.encode(content))


def _info(body: TextToImageBody, request: GenerationRequest, model: ModelInfo) -> dict[str, Any]:
    seeds = [image.seed for image in request.images()]
    count = len(seeds)
    return {
        "prompt": body.prompt,
        "all_prompts": [body.prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": SAMPLER,
        "cfg_scale": 1.0,
        "steps": request.steps,
        "batch_size": body.batch_size or 1,
        "sd_model_name": model.name,
        "sd_model_hash": model.digest[:HASH_CHARS],
        "index_of_first_image": 0,
        "infotexts": [_infotext(body.prompt, request, model, seed) for seed in seeds],
        "styles": [],
        "extra_generation_params": {},
    }


def _infotext(prompt: str, request: GenerationRequest, model: ModelInfo, seed: int) -> str:
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    return (
        f"{prompt}{negative}\nSteps: {request.steps}, Sampler: {SAMPLER}, CFG scale: 1.0, "
        f"Seed: {seed}, Size: {request.width}x{request.height}, "
        f"Model hash: {model.digest[:HASH_CHARS]}, Model: {model.name}"
    )


def _progress(engine: Engine, running: Running, caller: str, *, now: float) -> dict[str, Any]:
    """How far all that `caller` has running is; the step shown is that of its oldest request."""
    calls = running.of(caller)
    pictures = sum(call.request.num_images for call in calls)
    progresses = [engine.progress(call.request.id) for call in calls]
    finished = pictures - sum(progress.pictures for progress in progresses)
    total = sum(call.request.num_images * call.request.steps for call in calls)
    left = sum(progress.steps - progress.steps_done for progress in progresses)
    done = (total - left) / total if total else 0.0
    since_s = now - min((call.began_s for call in calls), default=now)
    first = progresses[0] if progresses else None
    return {
        "progress": done,
        "eta_relative": since_s * (1 - done) / done if done else 0.0,
        "state": {
            "skipped": False,
            "interrupted": False,
            "stopping_generation": False,
            "job": "txt2img" if calls else "",
            "job_count": pictures,
            "job_timestamp": "0",
            "job_no": finished,
            "sampling_step": -(-first.steps_done // first.pictures) if first and first.pictures else 0,
            "sampling_steps": calls[0].request.steps if calls else 0,
        },
        "current_image": None,
        "textinfo": None,
    }


def _options(model: ModelInfo) -> dict[str, Any]:
    return {
        "sd_model_checkpoint": _title(model),
        "sd_checkpoint_hash": model.digest,
        "sd_vae": "Automatic",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
    }


def _title(model: ModelInfo) -> str:
    return f"{model.name} [{model.digest[:HASH_CHARS]}]"


def _json(content: object) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
