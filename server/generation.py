"""What is asked for and what is answered, in every dialect and on both sides of the process border.

A `GenerationRequest` is what a client sent, complete with defaults. The engine cuts it into one
`ImageRequest` per picture, since pictures, not requests, share steps. Nothing here knows HTTP or torch.
"""

import hashlib
import re
from enum import StrEnum
from functools import cached_property
from typing import Literal

import msgspec

ImageFormat = Literal["png", "jpeg", "webp"]

MIN_SIDE, MAX_SIDE, SIDE_MULTIPLE = 256, 1536, 16
MAX_IMAGES = 8
MAX_PROMPT_CHARS = 32_000
MAX_SEQUENCE_LENGTH = 512
MAX_SEED = 2**53 - 1  # what a JSON number keeps in JavaScript
DRAWN_SEED_LIMIT = 2**32
MAX_GUIDANCE_SCALE = 20.0
MODEL_DEFAULT = 0  # of steps or tokens: what the model has, filled in when it is known
MAX_DEADLINE_MS = 3_600_000
MAX_PREVIEWS = 3
MIN_STRENGTH = 0.01
MAX_ADAPTERS = 4  # of one request
MAX_ADAPTER_SCALE = 4.0
ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ADAPTER_NAME_RULE = "1 to 64 letters, digits, dots, - and _, the first a letter or a digit"
ADAPTER_SUFFIX = ".safetensors"


class Priority(StrEnum):
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


URGENCY = tuple(Priority)  # the most urgent first


class Source(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The picture that a request starts from, in raw pixels of the size that is asked for, rows from the top.

    `pixels` is uint8 [height, width, 3], RGB. `strength`, from `MIN_STRENGTH` to 1, is how much of it is
    drawn anew: at 1 it is only looked at where it is kept. `mask` is uint8 [height, width]: 255 is drawn
    anew, 0 is kept; without it all is drawn anew. `blend` is uint8 [height, width]: the share of the model in
    a pixel of the answer, in 255ths, the rest is `pixels`; without it the answer is the model's.
    """

    pixels: bytes
    strength: float
    mask: bytes | None = None
    blend: bytes | None = None

    @cached_property
    def digests(self) -> tuple[str, str | None, str | None]:
        """SHA-256 of pixels, mask and blend, found once: some 10 ms for the largest of them."""
        mask, blend = (None if each is None else _digest(each) for each in (self.mask, self.blend))
        return _digest(self.pixels), mask, blend


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA by its name on this server, and what its change of the weights is multiplied by.

    `digest` is that of the file which the name means when the request is admitted.
    """

    name: str
    scale: float = 1.0
    digest: str = ""


class AdapterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA that is served: the SHA-256 of its file, and what it takes on a device."""

    name: str
    digest: str
    size_bytes: int


class ImageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One picture. Sizes are in pixels; `seed` alone decides its noise.

    `guidance_scale` above 1 means a second pass with `negative_prompt`, or the embedded guidance on
    guidance-distilled weights. `deadline_s` is the time left when the message was written. `key` is the name
    of the API key that it runs under. `previews` are the steps after which the picture is shown as it will
    be; they change nothing of it. `steps` is the length of the schedule, of which a `source` leaves out the
    beginning: `run_steps` really run.
    """

    id: str
    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    max_sequence_length: int
    image_format: ImageFormat
    quality: int
    embed_prompt: bool
    priority: Priority
    deadline_s: float | None
    key: str
    previews: tuple[int, ...] = ()
    source: Source | None = None
    adapters: tuple[Adapter, ...] = ()

    @property
    def run_steps(self) -> int:
        return run_steps(self.steps, self.source)

    @property
    def encodes_source(self) -> bool:
        """Whether the model looks at a source: not where all steps run, from noise, and nothing is kept."""
        return self.source is not None and (self.source.mask is not None or self.run_steps < self.steps)


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A client's request with every default filled in; picture i uses `seed + i`.

    `priority` is None where nobody asked for one: then it is that of the API key, or normal. `key` is the
    name of the API key that it came with, empty where there are none.
    """

    id: str
    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    max_sequence_length: int
    negative_prompt: str = ""
    guidance_scale: float = 0.0
    num_images: int = 1
    image_format: ImageFormat = "png"
    quality: int = 90
    embed_prompt: bool = False
    priority: Priority | None = None
    deadline_s: float | None = None
    key: str = ""
    previews: int = 0
    source: Source | None = None
    adapters: tuple[Adapter, ...] = ()

    @property
    def run_steps(self) -> int:
        """The steps that really run: all but those that a `source` leaves out."""
        return run_steps(self.steps, self.source)

    def fitted(self, model: "ModelInfo") -> "GenerationRequest":
        """Fill in what was left to the model, and clamp the steps to what it takes.

        For requests that may be accepted before the model is loaded, or run after a restart with another.
        """
        return msgspec.structs.replace(
            self,
            steps=min(self.steps or model.default_steps, model.max_steps),
            max_sequence_length=self.max_sequence_length or model.default_sequence_length,
        )

    def images(self) -> list[ImageRequest]:
        """Cut the request into its pictures, in order; their ids are `<request id>/<index>`."""
        return [
            ImageRequest(
                id=f"{self.id}/{index}",
                prompt=self.prompt,
                negative_prompt=self.negative_prompt,
                width=self.width,
                height=self.height,
                steps=self.steps,
                guidance_scale=self.guidance_scale,
                seed=self.seed + index,
                max_sequence_length=self.max_sequence_length,
                image_format=self.image_format,
                quality=self.quality,
                embed_prompt=self.embed_prompt,
                priority=self.priority or Priority.NORMAL,
                deadline_s=self.deadline_s,
                key=self.key,
                previews=preview_steps(self.run_steps, self.previews),
                source=self.source,
                adapters=self.adapters,
            )
            for index in range(self.num_images)
        ]


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the seconds of one picture went. `device_s` is its share of the steps it took part in."""

    queue_s: float = 0.0
    text_s: float = 0.0
    denoise_s: float = 0.0
    decode_s: float = 0.0
    encode_s: float = 0.0
    total_s: float = 0.0
    device_s: float = 0.0


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One encoded picture and what made it."""

    data: bytes
    content_type: str
    width: int
    height: int
    seed: int
    timings: Timings


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of a request when it came in: done in `finish_s` seconds, after `position` pictures."""

    position: int
    finish_s: float


class Preview(msgspec.Struct, frozen=True, kw_only=True):
    """How a picture looked after `step`, as a file; `index` counts the previews it was to have, from 0."""

    index: int
    step: int
    data: bytes
    content_type: str


class GenerationResult(msgspec.Struct, frozen=True, kw_only=True):
    """All pictures of one request, in the order of their seeds.

    `steps` is the length of the schedule, of which `run_steps` really ran.
    `timings` are those of the slowest picture that was made for it; where none was, all of it was waiting.
    `cached` pictures were finished before, `joined` ones were being made for another request. `created` is
    in Unix seconds. Without a `forecast` all of it was there already.
    """

    id: str
    model: str
    steps: int
    run_steps: int
    images: list[Image]
    timings: Timings
    created: int
    cached: int = 0
    joined: int = 0
    forecast: Forecast | None = None

    @property
    def made(self) -> bool:
        """Whether a picture was made for this request, and not for another one."""
        return self.cached + self.joined < len(self.images)


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker loaded: the defaults and limits that the front end must know.

    `guidance_embed` is true for guidance-distilled (dev-type) weights. `adapters` come and go.
    """

    name: str
    digest: str
    device: str
    dtype: str
    numerics: str
    quantize: str
    guidance_embed: bool
    default_width: int
    default_height: int
    default_steps: int
    max_steps: int
    default_sequence_length: int
    adapters: tuple[AdapterInfo, ...] = ()

    @property
    def decides(self) -> tuple[str, ...]:
        """What decides a picture beside its request: the same on every worker of a server."""
        kind, _, _ = self.device.partition(":")
        return self.digest, self.dtype, self.numerics, self.quantize, kind

    def uses_negative(self, guidance_scale: float) -> bool:
        """Whether there is a pass with the negative prompt: above 1, unless guidance is in the weights."""
        return guidance_scale > 1 and not self.guidance_embed


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def run_steps(steps: int, source: Source | None) -> int:
    """Return how many of `steps` really run, as diffusers' FluxImg2ImgPipeline has it: the last ones.

    The fraction of a step counts as a whole one: 4 steps at strength 0.6 are 3, at 0.8 all 4.
    """
    if source is None:
        return steps
    return steps - int(max(steps - min(steps * source.strength, steps), 0))


def preview_steps(steps: int, previews: int) -> tuple[int, ...]:
    """Spread up to `previews` over a run, from its first step on; after the last one the picture is done."""
    count = min(previews, steps - 1)
    return tuple(round(number * steps / (count + 1)) for number in range(1, count + 1))


def image_tokens(width: int, height: int) -> int:
    """Transformer rows of one picture: one per 16x16 pixel patch."""
    return (width // 16) * (height // 16)


def content_type(image_format: ImageFormat) -> str:
    return f"image/{image_format}"
