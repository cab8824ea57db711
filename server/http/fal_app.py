"""What the apps fal-ai/flux/schnell and flux-lora take and give, and how fal says that something is wrong.

Names, defaults and sizes are the published ones. A side may be anything there; here a picture that is too
large is made smaller in proportion, and each side then rounded: the answer says what it became. Pictures as
input are those of fal-ai/flux/dev/image-to-image, but for its strength of 0.95: four steps would all run, and
nothing be left of the picture.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from fastapi import Request, Response
from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema

from server.decoding import Fit
from server.errors import InvalidRequest, MalformedHeader, ServerError
from server.generation import (
    MAX_ADAPTERS,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_SIDE,
    MIN_SIDE,
    MIN_STRENGTH,
    SIDE_MULTIPLE,
    GenerationRequest,
    Image,
    ModelInfo,
    Priority,
    Timings,
)
from server.http.adapter_fields import SCALE_RULE, Asked, Name, Scale, chosen
from server.http.body import RequestBody, Text, shown
from server.http.errors import STATUS, error_response, message_of
from server.http.exchange import exchange_of
from server.http.input_pictures import PICTURE_RULE, InputPicture
from server.http.leniency import Leniency
from server.http.pictures import Picture
from server.http.seeds import given_or_drawn
from server.http.sizes import nearest_size
from server.http.sources import REPAINT, STRENGTH_RULE, Names, Start, check_without_image
from server.job import StoredImage

APPS: Final = (
    "fal-ai/flux/schnell",
    "fal-ai/flux-1/schnell",
    "fal-ai/flux/dev/image-to-image",
    "fal-ai/flux-general/inpainting",
    "fal-ai/flux-lora",
)
MAX_OUTPUTS: Final = 4
LONGEST_SIDE: Final = 14142
DEFAULT_SIDE: Final = 512
PRESETS: Final = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
SIZE_RULE: Final = (
    f"{', '.join(PRESETS)}, or an object of width and height from 1 to {LONGEST_SIDE}; what is beyond "
    f"{MAX_SIDE} is made smaller in proportion, then sides are rounded to multiples of {SIDE_MULTIPLE} from "
    f"{MIN_SIDE}"
)
SIDE_SCHEMA: Final = {"type": "integer", "minimum": 1, "maximum": LONGEST_SIDE, "default": DEFAULT_SIDE}
SIZE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string", "enum": [*PRESETS]},
        {"type": "object", "properties": {"width": SIDE_SCHEMA, "height": SIDE_SCHEMA}},
    ]
}
# The official clients repeat 408, 409 and 429 (Python, 10 times) or 429, 502, 503 and 504 (JavaScript, 4
# times): those are for what may be better a moment later.
STATUSES: Final = {**STATUS, "malformed_body": 422, "quota_exceeded": 403}
ERROR_TYPES: Final = {
    "malformed_header": "bad_request",
    "not_ready": "runner_scheduling_failure",
    "worker_lost": "runner_disconnected",
    "deadline_exceeded": "request_timeout",
    "cancelled": "client_cancelled",
    "generation_failed": "runner_server_error",
    "out_of_memory": "runner_server_error",
    "storage_unavailable": "internal_error",
}
IN_QUERY: Final = ("fal_webhook",)
# Clients say "normal" unasked, so it stands for what a key has anyway.
PRIORITIES: Final = {"normal": None, "low": Priority.LOW}
SECONDS: Final = re.compile(r"\d{1,9}(\.\d{1,9})?")
START_TIMEOUT: Final = "x-fal-request-timeout"
QUEUE_PRIORITY: Final = "x-fal-queue-priority"
HEADER_PARAMETERS: Final[list[dict[str, Any]]] = [
    {
        "name": "X-Fal-Request-Timeout",
        "in": "header",
        "schema": {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,9})?$"},
        "description": "seconds within which the work has to begin",
    },
    {
        "name": "X-Fal-Queue-Priority",
        "in": "header",
        "schema": {"type": "string", "enum": [*PRIORITIES]},
        "description": "normal or low",
    },
]


class ImageSize(RequestBody):
    """A size of the client's own."""

    model_config = ConfigDict(strict=False, extra="ignore")

    width: Annotated[int, Field(ge=1, le=LONGEST_SIDE, description=f"pixels from 1 to {LONGEST_SIDE}")] = (
        DEFAULT_SIDE
    )
    height: Annotated[int, Field(ge=1, le=LONGEST_SIDE, description=f"pixels from 1 to {LONGEST_SIDE}")] = (
        DEFAULT_SIDE
    )


def _preset(sent: object) -> object:
    size = PRESETS.get(sent) if isinstance(sent, str) else None
    return sent if size is None else ImageSize(width=size[0], height=size[1])


DEFAULT_SIZE: Final = ImageSize(width=1024, height=768)


class LoraWeight(RequestBody):
    """An adapter; `path` is its name here, where it is an address there."""

    model_config = ConfigDict(extra="ignore")

    path: Name
    scale: Scale = 1.0


class Input(RequestBody):
    """The input of the app; what is not listed is accepted and ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[
        Text, Field(max_length=MAX_PROMPT_CHARS, description=f"text of at most {MAX_PROMPT_CHARS} characters")
    ]
    image_size: Annotated[
        ImageSize, BeforeValidator(_preset), WithJsonSchema(SIZE_SCHEMA), Field(description=SIZE_RULE)
    ] = DEFAULT_SIZE
    num_inference_steps: Annotated[
        int | None,
        Field(ge=1, le=1000, description="a whole number of steps from 1 to the model's limit"),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=0, le=MAX_SEED - MAX_OUTPUTS, description="a whole number from 0; nothing has one drawn"),
    ] = None
    guidance_scale: Annotated[
        float | None, Field(ge=0, le=1000, description="a number; counts on guidance-distilled weights only")
    ] = None
    num_images: Annotated[
        int | None, Field(ge=1, le=MAX_OUTPUTS, description=f"a whole number from 1 to {MAX_OUTPUTS}")
    ] = None
    output_format: Annotated[Literal["jpeg", "png"] | None, Field(description='"jpeg" or "png"')] = None
    sync_mode: Annotated[
        bool | None, Field(description="true: pictures as data: addresses whatever the server's setting")
    ] = None
    image_url: Annotated[
        InputPicture | None,
        Field(description=f"{PICTURE_RULE}; the answer has its size, unless one is named"),
    ] = None
    mask_url: Annotated[
        InputPicture | None, Field(description=f"{PICTURE_RULE}; what is white in it is drawn anew")
    ] = None
    strength: Annotated[
        float | None,
        Field(ge=MIN_STRENGTH, le=1, description=f"{STRENGTH_RULE}, with a mask {REPAINT:g}"),
    ] = None
    enable_safety_checker: Annotated[
        bool | None, Field(description="true or false; accepted and ignored")
    ] = None
    acceleration: Annotated[str | None, Field(description="text; accepted and ignored")] = None
    loras: Annotated[
        Annotated[list[LoraWeight], Field(max_length=MAX_ADAPTERS)] | None,
        Field(description=f"a list of at most {MAX_ADAPTERS} objects of path and scale ({SCALE_RULE})"),
    ] = None


EXAMPLE: Final[dict[str, Any]] = {
    "prompt": "a red circle",
    "image_size": {"width": 256, "height": 256},
    "num_inference_steps": 4,
    "seed": 42,
}


def to_request(
    sent: Input,
    model: ModelInfo | None,
    leniency: Leniency,
    *,
    id: str,
    priority: Priority | None,
    previews: int = 0,
) -> GenerationRequest:
    """Fill in the model's defaults; raises `InvalidRequest`."""
    width, height = nearest_size(sent.image_size.width, sent.image_size.height)
    fit = leniency.fit(
        model, steps=sent.num_inference_steps, field="num_inference_steps", guidance=sent.guidance_scale
    )
    return GenerationRequest(
        id=id,
        prompt=sent.prompt,
        width=width,
        height=height,
        steps=fit.steps,
        guidance_scale=fit.guidance_scale,
        seed=given_or_drawn(sent.seed),
        num_images=sent.num_images or 1,
        max_sequence_length=fit.sequence_length,
        image_format=sent.output_format or "jpeg",
        priority=priority,
        previews=previews,
        adapters=chosen(
            (Asked(each.path, each.scale, f"loras.{n}.path") for n, each in enumerate(sent.loras or ())),
            model,
        ),
    )


def start_of(sent: Input) -> Start | None:
    """Return what a request starts from, if that is a picture; raises `InvalidRequest` for a mask alone.

    A size of another proportion is covered, and the rest cut off.
    """
    names = Names(image="image_url", mask="mask_url")
    if sent.image_url is None:
        check_without_image({names.mask: sent.mask_url}, image=names.image)
        return None
    named = "image_size" in sent.model_fields_set
    width, height = nearest_size(sent.image_size.width, sent.image_size.height) if named else (None, None)
    return Start(
        image=sent.image_url,
        mask=sent.mask_url,
        strength=sent.strength,
        mask_strength=REPAINT,
        width=width,
        height=height,
        fit=Fit.CROP,
        names=names,
    )


def output_of(
    request: GenerationRequest,
    images: Sequence[Image | StoredImage],
    addresses: Sequence[str | Picture],
    timings: Timings | None,
) -> dict[str, Any]:
    """Return the output of the app. There is no checker, so nothing is ever marked."""
    seconds = {} if timings is None else {"inference": timings.total_s - timings.queue_s}
    return {
        "images": [
            {
                "url": address,
                "width": image.width,
                "height": image.height,
                "content_type": image.content_type,
            }
            for image, address in zip(images, addresses, strict=True)
        ],
        "timings": seconds,
        "seed": request.seed,
        "has_nsfw_concepts": [False] * len(images),
        "prompt": request.prompt,
    }


def render_error(request: Request, error: ServerError) -> Response:
    """Answer a list of what is wrong with the input, or what went wrong and the type of that."""
    content, exchange = error_content(error), exchange_of(request)
    if "error_type" in content:
        exchange.headers["X-Fal-Error-Type"] = content["error_type"]
    if error.code == "deadline_exceeded":
        exchange.headers["X-Fal-Request-Timeout-Type"] = "user"  # not to be repeated
    return error_response(request, error, msgspec.json.encode(content), statuses=STATUSES)


def error_content(error: ServerError) -> dict[str, Any]:
    """Return the body of a failure. In `loc` are only strings: the Vercel AI SDK knows no others."""
    message = message_of(error)
    if not isinstance(error, InvalidRequest) or STATUSES[error.code] != 422:
        return {"detail": message, "error_type": ERROR_TYPES.get(error.code, error.code)}
    path = error.field.split(".") if error.field else []
    place = "query" if error.field in IN_QUERY else "body"
    kind = "missing" if error.missing else "value_error"
    return {"detail": [{"loc": [place, *path], "msg": message, "type": kind}]}


def start_timeout_s(http: Request) -> float | None:
    """Return within how many seconds the work has to begin; raises `MalformedHeader`."""
    sent = http.headers.get(START_TIMEOUT)
    if sent is None:
        return None
    if not SECONDS.fullmatch(sent.strip()) or float(sent) <= 0:
        raise MalformedHeader(
            f"{START_TIMEOUT} is {shown(sent)}; allowed: a number of seconds above 0", field=START_TIMEOUT
        )
    return float(sent)


def priority_of(http: Request) -> Priority | None:
    """Return how urgent a request is, if it says so; raises `MalformedHeader`."""
    sent = http.headers.get(QUEUE_PRIORITY, "normal")
    if sent.strip().lower() not in PRIORITIES:
        raise MalformedHeader(
            f"{QUEUE_PRIORITY} is {shown(sent)}; allowed: {', '.join(PRIORITIES)}", field=QUEUE_PRIORITY
        )
    return PRIORITIES[sent.strip().lower()]


def check_app(app: str, model: ModelInfo, leniency: Leniency, http: Request) -> None:
    """Note the name of an app that is not served; raises `NotFound` where names are checked."""
    if app not in APPS:
        leniency.check_model(app, model, http, field="app")


async def name_request(http: Request) -> None:
    """Say in the answer which request it is about; a job's own id takes its place where there is one."""
    exchange = exchange_of(http)
    exchange.headers["X-Fal-Request-Id"] = exchange.request_id
