"""Pictures that start from a picture are those of diffusers in float32, whoever shares their steps."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from model import sampling, source
from model.autoencoder import Autoencoder
from model.pipeline import Pipeline
from model.source import Source
from tests.model.conftest import Oracle
from tests.model.parity import (
    LATENTS,
    Run,
    assert_same_picture,
    begin,
    distance,
    finish,
    load,
    our_picture,
    their_picture,
)
from tests.pictures import ragged_mask, source_pixels

MASKED = Run(steps=4, strength=0.6, width=272, height=256, masked=True)


@pytest.fixture(scope="module")
def pipeline(oracle: Oracle) -> Pipeline:
    return load(oracle()[1])


@pytest.fixture(scope="module")
def expected(oracle: Oracle, pipeline: Pipeline) -> torch.Tensor:
    """Diffusers' latents of `MASKED`, which are ours too."""
    latents, _ = their_picture(oracle()[0], MASKED)
    assert distance(our_picture(pipeline, MASKED)[0], latents) <= LATENTS
    return latents


@pytest.mark.parametrize(
    "run",
    [
        Run(steps=4, strength=0.6, width=272, height=384, seed=2**32 + 5),
        Run(steps=4, strength=0.8),
        Run(steps=1, strength=0.3),
        Run(steps=3, strength=0.3, width=384, height=256, length=128),
        Run(steps=3, strength=0.6, guidance=3.0, negative="blue, dark"),
        Run(steps=4, strength=0.6, width=272, height=384, masked=True),
        Run(steps=2, strength=1.0, masked=True, seed=7),
        Run(steps=2, strength=0.8, masked=True, guidance=2.0, negative="a cat"),
    ],
    ids=str,
)
def test_a_picture_from_a_picture_agrees_with_diffusers(oracle: Oracle, pipeline: Pipeline, run: Run) -> None:
    assert_same_picture(pipeline, oracle()[0], run)


def test_dev_agrees_with_diffusers(oracle: Oracle) -> None:
    """Whose schedule, shifted by the size, begins in its middle."""
    theirs, folder = oracle(dev=True)
    run = Run(steps=4, strength=0.6, guidance=3.5, masked=True, width=272, height=384)
    assert_same_picture(load(folder), theirs, run)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_neighbours_in_their_steps_change_no_bit(oracle: Oracle, device: str) -> None:
    pipeline = load(oracle()[1], device=torch.device(device))
    runs = [
        Run(steps=4, seed=1),
        Run(steps=4, strength=0.6, seed=2, width=384),
        Run(steps=3, strength=0.8, seed=3, masked=True),
        Run(steps=2, strength=0.6, seed=4, masked=True, guidance=2.0),
    ]
    alone = [our_picture(pipeline, run)[0] for run in runs]
    samples = [begin(pipeline, run) for run in runs]
    finish(pipeline, samples)
    for sample, latents in zip(samples, alone, strict=True):
        assert torch.equal(sample.latents, latents)


def draws_in_the_other_order(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = sampling.seeded(0)
    drawn = [sampling.draw_latents(generator, width=MASKED.width, height=MASKED.height) for _ in range(2)]
    monkeypatch.setattr(source, "draw_latents", lambda *_, **__: drawn.pop())


def the_mean_of_the_posterior(monkeypatch: pytest.MonkeyPatch) -> None:
    encode = Autoencoder.encode
    monkeypatch.setattr(Autoencoder, "encode", lambda self, image, _: encode(self, image))


def pixels_from_0_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Source.image
    monkeypatch.setattr(Source, "image", lambda self: image(self) / 2 + 0.5)


def a_mask_by_the_mean_of_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def redrawn(self: Source) -> torch.Tensor:
        assert self.mask is not None
        height, width = self.mask.shape
        means = self.mask.reshape(height // 8, 8, width // 8, 8).mean((1, 3))
        return sampling.pack(torch.from_numpy(means >= 128).repeat(1, 16, 1, 1))[0]

    monkeypatch.setattr(Source, "redrawn", redrawn)


def what_is_kept_has_the_noise_of_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    put_back = sampling.Kept.put_back
    monkeypatch.setattr(
        sampling.Kept, "put_back", lambda self, latents, sigma: put_back(self, latents, sigma + 1 / 4)
    )


def a_step_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    first_step = Source.first_step
    monkeypatch.setattr(Source, "first_step", lambda self, steps: first_step(self, steps) - 1)


@pytest.mark.parametrize(
    "mistake",
    [
        draws_in_the_other_order,
        the_mean_of_the_posterior,
        pixels_from_0_to_1,
        a_mask_by_the_mean_of_its_pixels,
        what_is_kept_has_the_noise_of_the_step_before,
        a_step_too_many,
    ],
    ids=lambda mistake: mistake.__name__,
)
def test_small_mistakes_are_caught(
    pipeline: Pipeline,
    expected: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    mistake: Callable[[pytest.MonkeyPatch], None],
) -> None:
    mistake(monkeypatch)
    sample = begin(pipeline, MASKED)
    finish(pipeline, [sample])
    assert distance(sample.latents, expected) > LATENTS


def test_a_source_without_a_say_is_not_encoded(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its draws are made nevertheless: diffusers' picture of a seed is another one than from text alone."""
    run = Run(steps=4, strength=0.8)
    expected = begin(pipeline, run).latents
    monkeypatch.setattr(Autoencoder, "encode", None)
    assert torch.equal(begin(pipeline, run).latents, expected)
    assert not torch.equal(begin(pipeline, replace(run, strength=None)).latents, expected)


def test_where_nothing_is_redrawn_the_picture_is_what_the_autoencoder_makes_of_it(pipeline: Pipeline) -> None:
    kept = Source(source_pixels(256, 256), 0.5, np.zeros((256, 256), np.uint8))
    (made,) = pipeline.generate(
        ["a cat"], seeds=[1], width=256, height=256, steps=2, max_sequence_length=64, source=kept
    )
    with torch.inference_mode():
        posterior = sampling.draw_latents(sampling.seeded(1), width=256, height=256)
        image = pipeline.autoencoder.decode(pipeline.autoencoder.encode(kept.image(), posterior))
    np.testing.assert_array_equal(made, pipeline.ops.to_pixels(image[0]).numpy())


def test_a_mask_is_what_the_top_left_pixel_of_each_latent_says() -> None:
    mask = ragged_mask(96, 80)
    redrawn = Source(source_pixels(96, 80), 0.5, mask).redrawn()
    assert redrawn is not None
    latents = sampling.unpack(redrawn[None], width=96, height=80)[0]
    assert 0 < latents[0].sum() < latents[0].numel()
    for channel in latents:
        np.testing.assert_array_equal(channel.numpy(), mask[::8, ::8] >= 128)


@pytest.mark.parametrize(
    ("steps", "left_out"),
    [
        (4, {0.01: 3, 0.3: 2, 0.5: 2, 0.6: 1, 0.75: 1, 0.8: 0, 1.0: 0}),
        (3, {0.01: 2, 0.3: 2, 0.6: 1, 0.8: 0, 1.0: 0}),
        (2, {0.01: 1, 0.3: 1, 0.6: 0, 1.0: 0}),
        (1, {0.01: 0, 0.3: 0, 1.0: 0}),
    ],
)
def test_a_part_of_a_step_runs_as_a_whole_one(steps: int, left_out: dict[float, int]) -> None:
    """As diffusers' FluxImg2ImgPipeline.get_timesteps has it."""
    pixels = source_pixels(16, 16)
    assert {strength: Source(pixels, strength).first_step(steps) for strength in left_out} == left_out
