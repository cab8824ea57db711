"""What a prediction of black-forest-labs/flux-schnell takes and gives, wherever that model is served by Cog.

The names, defaults and sizes are the published ones; only the limit of steps is the served model's own.
Pictures as input are those of black-forest-labs/flux-dev, but for its strength of 0.8: four steps would all
run, and nothing be left of the picture.
Adapters are asked for as of flux-schnell-lora and the models of Replicate's trainer, by their names here.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field

from server.generation import (
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MIN_STRENGTH,
    GenerationRequest,
    GenerationResult,
    ImageFormat,
    ModelInfo,
)
from server.http.adapter_fields import NAME_RULE, SCALE_RULE, Asked, Name, Scale, chosen
from server.http.body import RequestBody, Text
from server.http.input_pictures import PICTURE_RULE, InputPicture
from server.http.leniency import Leniency
from server.http.pictures import Picture
from server.http.seeds import given_or_drawn
from server.http.sizes import size_of
from server.http.sources import REPAINT, STRENGTH_RULE, Names, Start, check_without_image

MAX_OUTPUTS: Final = 4
FORMATS: Final[dict[str, ImageFormat]] = {"webp": "webp", "jpg": "jpeg", "png": "png"}
RATIOS: Final = "1:1, 16:9, 21:9, 3:2, 2:3, 4:5, 5:4, 3:4, 4:3, 9:16 or 9:21"

AspectRatio = Literal["1:1", "16:9", "21:9", "3:2", "2:3", "4:5", "5:4", "3:4", "4:3", "9:16", "9:21"]


def _order(place: int) -> dict[str, Any]:
    """The place of a field in forms that are made from the schema."""
    return {"x-order": place}


def _address(place: int) -> dict[str, Any]:
    """The same of a field that is a file, for which forms have a button."""
    return {"x-order": place, "format": "uri"}


class Input(RequestBody):
    """The input of a prediction; what is not listed is accepted and ignored."""

    model_config = ConfigDict(extra="ignore")

    prompt: Annotated[
        Text,
        Field(
            max_length=MAX_PROMPT_CHARS,
            description=f"text of at most {MAX_PROMPT_CHARS} characters",
            json_schema_extra=_order(0),
        ),
    ]
    aspect_ratio: Annotated[AspectRatio, Field(description=RATIOS, json_schema_extra=_order(1))] = "1:1"
    num_outputs: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_OUTPUTS,
            description=f"a whole number from 1 to {MAX_OUTPUTS}",
            json_schema_extra=_order(2),
        ),
    ] = 1
    num_inference_steps: Annotated[
        int | None,
        Field(
            ge=1,
            le=1000,
            description="a whole number of steps from 1 to the model's limit",
            json_schema_extra=_order(3),
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_SEED - MAX_OUTPUTS,
            description="a whole number; 0 or nothing has one drawn",
            json_schema_extra=_order(4),
        ),
    ] = None
    output_format: Annotated[
        Literal["webp", "jpg", "png"],
        Field(description='"webp", "jpg" or "png"', json_schema_extra=_order(5)),
    ] = "webp"
    output_quality: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="a whole number from 0 to 100, for jpg and webp",
            json_schema_extra=_order(6),
        ),
    ] = 80
    disable_safety_checker: Annotated[
        bool,
        Field(description="true or false; accepted and ignored", json_schema_extra=_order(7)),
    ] = False
    go_fast: Annotated[
        bool, Field(description="true or false; accepted and ignored", json_schema_extra=_order(8))
    ] = True
    megapixels: Annotated[
        Literal["1", "0.25"],
        Field(description='"1" or "0.25"; with image it counts not', json_schema_extra=_order(9)),
    ] = "1"
    image: Annotated[
        InputPicture | None,
        Field(description=f"{PICTURE_RULE}; the answer has its size", json_schema_extra=_address(10)),
    ] = None
    mask: Annotated[
        InputPicture | None,
        Field(
            description=f"{PICTURE_RULE}; what is white in it is drawn anew", json_schema_extra=_address(11)
        ),
    ] = None
    prompt_strength: Annotated[
        float | None,
        Field(
            ge=MIN_STRENGTH,
            le=1,
            description=f"{STRENGTH_RULE}, with a mask {REPAINT:g}",
            json_schema_extra=_order(12),
        ),
    ] = None
    lora_weights: Annotated[Name | None, Field(description=NAME_RULE, json_schema_extra=_order(13))] = None
    lora_scale: Annotated[Scale, Field(description=SCALE_RULE, json_schema_extra=_order(14))] = 1.0
    extra_lora: Annotated[Name | None, Field(description=NAME_RULE, json_schema_extra=_order(15))] = None
    extra_lora_scale: Annotated[Scale, Field(description=SCALE_RULE, json_schema_extra=_order(16))] = 1.0


INPUT_EXAMPLE: Final[dict[str, Any]] = {
    "prompt": "a red circle",
    "megapixels": "0.25",
    "num_inference_steps": 4,
    "seed": 42,
}
OUTPUT_SCHEMA: Final[dict[str, Any]] = {
    "title": "Output",
    "type": "array",
    "items": {"type": "string", "format": "uri"},
}


def to_request(
    sent: Input, model: ModelInfo | None, leniency: Leniency, *, id: str, field: str = "input"
) -> GenerationRequest:
    """Fill in the model's defaults; raises `InvalidRequest` for what is within `field`."""
    width, height = size_of(sent.aspect_ratio, sent.megapixels)
    fit = leniency.fit(model, steps=sent.num_inference_steps, field=f"{field}.num_inference_steps")
    return GenerationRequest(
        id=id,
        prompt=sent.prompt,
        width=width,
        height=height,
        steps=fit.steps,
        seed=given_or_drawn(sent.seed or None),
        num_images=sent.num_outputs,
        max_sequence_length=fit.sequence_length,
        image_format=FORMATS[sent.output_format],
        quality=max(1, sent.output_quality),
        adapters=chosen(_adapters_in(sent, field), model),
    )


def start_of(sent: Input, *, field: str = "input") -> Start | None:
    """Return what a prediction starts from, if it is a picture; raises `InvalidRequest` for a mask alone."""
    names = Names(image=f"{field}.image", mask=f"{field}.mask")
    if sent.image is None:
        check_without_image({names.mask: sent.mask}, image=names.image)
        return None
    return Start(
        image=sent.image,
        mask=sent.mask,
        strength=sent.prompt_strength,
        mask_strength=REPAINT,
        names=names,
    )


def _adapters_in(sent: Input, field: str) -> Iterator[Asked]:
    if sent.lora_weights:
        yield Asked(sent.lora_weights, sent.lora_scale, f"{field}.lora_weights")
    if sent.extra_lora:
        yield Asked(sent.extra_lora, sent.extra_lora_scale, f"{field}.extra_lora")


def output_of(result: GenerationResult) -> list[Picture]:
    """Return the pictures as `data:` addresses."""
    return [Picture(image.data, prefix=f"data:{image.content_type};base64,") for image in result.images]


def logs_of(request: GenerationRequest) -> str:
    """Return what the published model writes: clients read the seed from it."""
    return f"Using seed: {request.seed}\n"
