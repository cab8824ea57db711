"""The words between the front end and a worker: tagged msgpack messages in length-prefixed frames.

The pipe is an inherited socket pair, so nobody else can speak on it; still every frame is capped before a
byte of it is stored, and only these types are ever built from it (no pickle). Prompts, seeds and the raw
pixels of sources go in, encoded pictures come out; no tensor crosses.
"""

import struct
from typing import Final

import msgspec

from server.costs import CostTable, StepKind
from server.generation import AdapterInfo, Image, ImageRequest, ModelInfo, Preview, Priority

FRAME_HEADER: Final = struct.Struct(">I")
# The largest request is two prompts of 32,000 four-byte characters and a source of 1536x1536: five bytes a
# pixel with mask and blend, 11.8 MB. The largest picture is 1536x1536 of noise, 7.1 MB raw, which no format
# grows by more than a few per cent.
MAX_TO_WORKER_BYTES: Final = 16 << 20
MAX_TO_FRONT_BYTES: Final = 32 << 20


class AdapterFile(msgspec.Struct, frozen=True, kw_only=True):
    """A LoRA's file on this machine, and the name that it goes by.

    Without one that is `required` a worker does not start; of another it says so in the log.
    """

    name: str
    path: str
    required: bool = False


class Start(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """The first message: what to load and how. Paths and names as the settings have them."""

    model: str
    device: str
    dtype: str
    numerics: str
    kernels: str
    quantize: str
    memory: str
    threads: int
    max_steps: int
    data_dir: str
    calibration_s: float
    conditioning_cache_bytes: int
    verify_weights: str
    allow_pickle: bool
    log_format: str
    log_level: str
    adapters: tuple[AdapterFile, ...] = ()
    adapters_limit_bytes: int = 0  # on the device


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag="submit"):
    image: ImageRequest


class Cancel(msgspec.Struct, frozen=True, kw_only=True, tag="cancel"):
    """Forget this picture at the next step boundary; a `Failed` then says so, unless it has its answer."""

    id: str


class Revise(msgspec.Struct, frozen=True, kw_only=True, tag="revise"):
    """Another request waits for this picture too: it is as urgent as this, and may take as long as this.

    `deadline_s` is the time left when the message was written. A picture that has left is no fault.
    """

    id: str
    priority: Priority
    deadline_s: float | None


class LoadAdapter(msgspec.Struct, frozen=True, kw_only=True, tag="load_adapter"):
    """Load a LoRA; what is submitted after this finds it. `AdapterLoaded` or `AdapterRefused` answers."""

    file: AdapterFile


class DropAdapter(msgspec.Struct, frozen=True, kw_only=True, tag="drop_adapter"):
    """Forget the LoRA of this digest when the pictures that have it are done."""

    digest: str


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Exit with status 0. The front end has drained first: what is still in hand is dropped."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The model is loaded and warm; `costs` is what its device takes for a picture."""

    model: ModelInfo
    costs: CostTable


class Stepping(msgspec.Struct, frozen=True, kw_only=True, tag="stepping"):
    """A step of these pictures begins: if the worker dies before `Stepped`, one of them may be why.

    Each lane runs one step at a time.
    """

    lane: int
    ids: list[str]


class Stepped(msgspec.Struct, frozen=True, kw_only=True, tag="stepped"):
    """One step of any kind is over: the raw material of the step histograms. Seconds are device-seconds.

    `efficiency` is `Costs.efficiency` of a denoising step.
    """

    kind: StepKind
    lane: int
    images: int
    tokens: int
    seconds: float
    efficiency: float | None = None


class Previewed(msgspec.Struct, frozen=True, kw_only=True, tag="previewed"):
    id: str
    preview: Preview


class Done(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    id: str
    image: Image


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """This picture cannot be made, or is forgotten; `code` is one of `server.errors`.

    `device_s` is its share of the steps that it took part in.
    """

    id: str
    code: str
    message: str
    device_s: float = 0.0


class AdapterLoaded(msgspec.Struct, frozen=True, kw_only=True, tag="adapter_loaded"):
    adapter: AdapterInfo


class AdapterRefused(msgspec.Struct, frozen=True, kw_only=True, tag="adapter_refused"):
    """This file is no LoRA for the model, or has no room; the reason does not say where the file lies."""

    name: str
    reason: str


class CacheReport(msgspec.Struct, frozen=True, kw_only=True, tag="cache"):
    """Conditioning cache counters since the worker started."""

    hits: int
    misses: int
    size_bytes: int


class Fatal(msgspec.Struct, frozen=True, kw_only=True, tag="fatal"):
    """The worker exits, and a restart would end the same way."""

    message: str


ToWorker = Start | Submit | Cancel | Revise | LoadAdapter | DropAdapter | Stop
ToFront = (
    Ready
    | Stepping
    | Stepped
    | Previewed
    | Done
    | Failed
    | AdapterLoaded
    | AdapterRefused
    | CacheReport
    | Fatal
)


class ProtocolError(Exception):
    """The other side broke the protocol; the connection is of no further use."""


_encoder = msgspec.msgpack.Encoder()
_to_worker_decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_front_decoder: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront)


def frame(message: msgspec.Struct) -> bytes:
    """Encode one message with its four-byte big-endian length in front."""
    body = _encoder.encode(message)
    return FRAME_HEADER.pack(len(body)) + body


def body_length(header: bytes, *, limit_bytes: int) -> int:
    """Read a frame's length; raises `ProtocolError` above the limit, before anything is allocated."""
    (length,) = FRAME_HEADER.unpack(header)
    if length > limit_bytes:
        raise ProtocolError(f"a frame of {length} bytes is over the limit of {limit_bytes}")
    return int(length)


def decode_to_worker(body: bytes) -> ToWorker:
    """Decode what the front end sent; raises `ProtocolError` for anything else."""
    try:
        return _to_worker_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message to a worker: {error}") from None


def decode_to_front(body: bytes) -> ToFront:
    """Decode what a worker sent; raises `ProtocolError` for anything else."""
    try:
        return _to_front_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"not a message to the front end: {error}") from None
