"""A request's picture in the worker: checked, handed to the model, and put back where it is kept."""

import io
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from model.source import Source as ModelSource
from server.generation import ImageRequest, Source, run_steps
from server.protocol import Done, Failed, Stepped
from server.worker.source import blended, source_of
from tests.pictures import ragged_mask, source_pixels
from tests.server.worker.pipelines import (
    FakePipeline,
    FakeSample,
    hear,
    images,
    pictures,
    run_through,
    submitted,
    watched,
)

PIXELS = 16 * 16


def source(**changes: Any) -> Source:
    return Source(**{"pixels": bytes(3 * PIXELS), "strength": 0.6} | changes)


def request(width: int, height: int, given: Source) -> ImageRequest:
    (image,) = images(1, width=width, height=height, source=given)
    return image


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (source(pixels=b"short"), "source pixels: 5 bytes; allowed for a picture of 16x16: 768"),
        (source(mask=bytes(255)), "source mask: 255 bytes; allowed for a picture of 16x16: 256"),
        (source(blend=b""), "source blend: 0 bytes; allowed for a picture of 16x16: 256"),
        (source(strength=0.0), "source strength: 0; allowed: 0.01 to 1"),
    ],
    ids=["pixels", "mask", "blend", "strength"],
)
def test_a_source_of_another_size_fails_alone_and_says_why(given: Source, message: str) -> None:
    sent = hear(FakePipeline(), [submitted("bad", source=given), submitted("good", source=source())])
    answers = {each.id: each for each in sent if isinstance(each, Done | Failed)}
    assert answers["bad/0"] == Failed(id="bad/0", code="generation_failed", message=message)
    assert isinstance(answers["good/0"], Done)


def test_only_the_steps_that_a_source_leaves_are_run() -> None:
    sent = hear(FakePipeline(), [submitted("a", steps=4, source=source(strength=0.3))])
    kinds = [message.kind for message in sent if isinstance(message, Stepped)]
    assert kinds == ["encode", "denoise", "denoise", "decode"]


@pytest.mark.parametrize("steps", range(1, 51))
def test_the_model_and_the_server_count_the_same_steps(steps: int) -> None:
    for hundredths in range(1, 101):
        strength = hundredths / 100
        left_out = ModelSource(np.zeros((1, 1, 3), np.uint8), strength).first_step(steps)
        assert run_steps(steps, source(strength=strength)) == steps - left_out >= 1


def test_the_model_gets_rows_from_the_top_in_the_sizes_of_the_request() -> None:
    pixels, mask = source_pixels(48, 32), ragged_mask(48, 32)
    given = Source(pixels=pixels.tobytes(), strength=0.5, mask=mask.tobytes())
    made = source_of(request(48, 32, given))
    assert made is not None
    np.testing.assert_array_equal(made.pixels, pixels)
    np.testing.assert_array_equal(made.mask, mask)
    assert made.strength == 0.5


def test_what_is_kept_is_the_source_to_the_bit_and_between_is_rounded_to_the_nearest() -> None:
    size = (256, 16 * 3)
    rng = np.random.default_rng(0)
    made, pixels = (rng.integers(0, 256, (size[1], size[0], 3), np.uint8) for _ in range(2))
    blend = np.tile(np.arange(256, dtype=np.uint8), (size[1], 1))
    given = Source(pixels=pixels.tobytes(), strength=0.5, blend=blend.tobytes())
    mixed = blended(made, request(*size, given))
    assert mixed.dtype == np.uint8
    share = blend[:, :, None] / 255
    np.testing.assert_array_equal(mixed, np.round(share * made + (1 - share) * pixels))
    np.testing.assert_array_equal(mixed[:, 0], pixels[:, 0])
    np.testing.assert_array_equal(mixed[:, 255], made[:, 255])


def test_without_a_blend_the_answer_is_the_models() -> None:
    made = source_pixels(16, 16)
    assert blended(made, request(16, 16, source())) is made
    assert blended(made, images(1)[0]) is made


def test_sources_that_run_out_of_memory_together_are_encoded_apart() -> None:
    class SmallDevice(FakePipeline):
        started = 0

        def encode(self, prompts: Sequence[Any]) -> list[Any]:
            self.started = 0
            return super().encode(prompts)

        def start(self, *, source: ModelSource | None, **arguments: Any) -> FakeSample:
            self.started += source is not None
            if self.started > 1:
                raise torch.OutOfMemoryError("too many at once")
            return super().start(**arguments)

    given = [submitted(str(number), seed=number, source=source()) for number in range(3)]
    sent = hear(SmallDevice(), [*given, submitted("plain")])
    assert {each.id for each in sent if isinstance(each, Done)} == {"0/0", "1/0", "2/0", "plain/0"}


def test_a_source_that_does_not_fit_alone_fails_alone() -> None:
    class TinyDevice(FakePipeline):
        def start(self, *, source: ModelSource | None, **arguments: Any) -> FakeSample:
            if source is not None:
                raise torch.OutOfMemoryError("too large")
            return super().start(**arguments)

    sent = hear(TinyDevice(), [submitted("large", source=source()), submitted("plain")])
    (failed,) = (each for each in sent if isinstance(each, Failed))
    assert (failed.id, failed.code) == ("large/0", "out_of_memory")
    assert [each.id for each in sent if isinstance(each, Done)] == ["plain/0"]


def test_pictures_with_and_without_a_source_share_steps_and_stay_themselves() -> None:
    """And what is kept comes back to the bit, in the file that the client gets."""
    pixels, mask = source_pixels(256, 256), ragged_mask(256, 256)
    inpainted = Source(pixels=pixels.tobytes(), strength=0.8, mask=mask.tobytes(), blend=mask.tobytes())
    started = msgspec.structs.replace(inpainted, mask=None, blend=None, strength=0.6)
    requests = [
        msgspec.structs.replace(image, source=given)
        for image, given in zip(
            images(3, width=256, height=256, steps=4), (None, started, inpainted), strict=True
        )
    ]
    together = watched(lambda pipeline, samples: None)
    made = pictures(run_through(together, requests))
    assert together.calls == [3, 3, 3, 2]
    for request in requests:
        assert pictures(run_through(together, [request])) == {request.id: made[request.id]}
    answer = np.asarray(Image.open(io.BytesIO(made["2"])))
    assert (mask == 0).any()
    np.testing.assert_array_equal(answer[mask == 0], pixels[mask == 0])
    assert not np.array_equal(answer[mask == 255], pixels[mask == 255])
