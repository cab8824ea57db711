"""Every message survives the border; nothing else gets through."""

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.costs import CostTable, StepKind
from server.generation import AdapterInfo, GenerationRequest, Image, Preview, Priority, Timings
from server.protocol import (
    FRAME_HEADER,
    MAX_TO_WORKER_BYTES,
    AdapterFile,
    AdapterLoaded,
    AdapterRefused,
    CacheReport,
    Cancel,
    Done,
    DropAdapter,
    Failed,
    Fatal,
    LoadAdapter,
    Previewed,
    ProtocolError,
    Ready,
    Revise,
    Start,
    Stepped,
    Stepping,
    Stop,
    Submit,
    ToFront,
    ToWorker,
    body_length,
    decode_to_front,
    decode_to_worker,
    frame,
)
from tests.server.models import MODEL

REQUEST = GenerationRequest(
    id="r", prompt="a 🐻", width=256, height=272, steps=4, seed=2**53 - 1, max_sequence_length=64
)
IMAGE = Image(data=b"\0\xff", content_type="image/png", width=1, height=2, seed=3, timings=Timings())
TO_WORKER: list[ToWorker] = [
    Start(
        model="m", device="cpu", dtype="auto", numerics="auto", kernels="auto", quantize="none",
        memory="full", threads=1, max_steps=0, data_dir="/nowhere", calibration_s=0.5,
        conditioning_cache_bytes=1, verify_weights="auto", allow_pickle=False, log_format="text",
        log_level="info",
    ),
    Submit(image=REQUEST.images()[0]),
    Cancel(id="r/0"),
    Revise(id="r/0", priority=Priority.HIGH, deadline_s=1.5),
    LoadAdapter(file=AdapterFile(name="a", path="/nowhere/a.safetensors")),
    DropAdapter(digest="d1"),
    Stop(),
]  # fmt: skip
TO_FRONT: list[ToFront] = [
    Ready(model=MODEL, costs=CostTable(row_s=1e-5, ratios={"denoise 256x256": 1.25}, max_rows=7)),
    Stepped(kind=StepKind.DENOISE, lane=0, images=2, tokens=512, seconds=0.5, efficiency=0.9),
    Stepping(lane=0, ids=["a/0"]),
    Previewed(id="r/0", preview=Preview(index=0, step=1, data=b"\xff", content_type="image/png")),
    Done(id="r/0", image=IMAGE),
    Failed(id="r/0", code="generation_failed", message="no"),
    AdapterLoaded(adapter=AdapterInfo(name="a", digest="d1", size_bytes=7)),
    AdapterRefused(name="a", reason="no"),
    CacheReport(hits=1, misses=2, size_bytes=3),
    Fatal(message="no"),
]


def body_of(message: ToWorker | ToFront) -> bytes:
    data = frame(message)
    length = body_length(data[: FRAME_HEADER.size], limit_bytes=MAX_TO_WORKER_BYTES)
    assert length == len(data) - FRAME_HEADER.size
    return data[FRAME_HEADER.size :]


@pytest.mark.parametrize("message", TO_WORKER, ids=lambda message: type(message).__name__)
def test_messages_to_a_worker_survive(message: ToWorker) -> None:
    assert decode_to_worker(body_of(message)) == message
    with pytest.raises(ProtocolError):
        decode_to_front(body_of(message))


@pytest.mark.parametrize("message", TO_FRONT, ids=lambda message: type(message).__name__)
def test_messages_to_the_front_end_survive(message: ToFront) -> None:
    assert decode_to_front(body_of(message)) == message
    with pytest.raises(ProtocolError):
        decode_to_worker(body_of(message))


def test_every_kind_of_message_is_tested() -> None:
    assert {type(message) for message in TO_WORKER} == set(ToWorker.__args__)
    assert {type(message) for message in TO_FRONT} == set(ToFront.__args__)


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(ProtocolError, match="4294967295 bytes"):
        body_length(b"\xff\xff\xff\xff", limit_bytes=MAX_TO_WORKER_BYTES)


def test_the_largest_request_fits_in_a_frame() -> None:
    text = "🐻" * 32_000
    largest = msgspec.structs.replace(REQUEST.images()[0], prompt=text, negative_prompt=text)
    assert len(frame(Submit(image=largest))) <= MAX_TO_WORKER_BYTES


@given(st.binary(max_size=300))
def test_arbitrary_bytes_raise_nothing_but_a_protocol_error(data: bytes) -> None:
    for decode in (decode_to_worker, decode_to_front):
        with contextlib.suppress(ProtocolError):
            decode(data)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(ProtocolError):
        decode_to_front(b"\x91" * 100_000)
