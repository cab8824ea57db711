"""Previews look like the pictures that come of them."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from model.conditioning import Prompt
from model.generate import EMBEDDED_MODEL
from model.layout import Numerics
from model.pipeline import Pipeline, Pixels
from model.preview import Previewer
from model.sampling import PIXELS_PER_LATENT, Sample, predict_latents

PROMPTS = ("a red circle on a blue background", "a yellow star on a green background")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(
        EMBEDDED_MODEL, device=torch.device("cpu"), dtype=torch.float32, numerics=Numerics.EXACT
    )


def started(pipeline: Pipeline, prompt: str, *, width: int = 256, height: int = 256) -> Sample:
    (conditioning,) = pipeline.encode([Prompt(prompt, 64)])
    return pipeline.start(
        conditioning=conditioning,
        negative=None,
        width=width,
        height=height,
        steps=4,
        seed=1,
        guidance_scale=0.0,
    )


def steps_of(pipeline: Pipeline, sample: Sample) -> Iterator[int]:
    while not sample.finished:
        pipeline.denoise_step([sample])
        yield sample.step


def mean_colours(pixels: Pixels) -> np.ndarray:
    """Average the 8x8 pixels of each latent: [height/8, width/8, 3]."""
    height, width, _ = pixels.shape
    side = PIXELS_PER_LATENT
    return pixels.reshape(height // side, side, width // side, side, 3).mean((1, 3))


def r2(preview: Pixels, pixels: Pixels) -> float:
    wanted = mean_colours(pixels)
    return float(1 - ((preview - wanted) ** 2).sum() / ((wanted - wanted.mean((0, 1))) ** 2).sum())


@pytest.mark.parametrize("prompt", PROMPTS)
def test_previews_explain_most_of_the_picture_from_the_first_step_on(pipeline: Pipeline, prompt: str) -> None:
    previewer = Previewer.fit(pipeline.autoencoder)
    sample = started(pipeline, prompt, width=272, height=256)
    shown = [previewer.preview(sample) for _ in steps_of(pipeline, sample)]
    (pixels,) = pipeline.decode([sample])
    assert [preview.shape for preview in shown] == [(32, 34, 3)] * 4
    found = [r2(preview, pixels) for preview in shown]
    assert min(found) > 0.8  # 0.96 and 0.86 were seen after each step; the mean colour alone is 0


def test_a_preview_leaves_its_sample_as_it_was(pipeline: Pipeline) -> None:
    previewer = Previewer.fit(pipeline.autoencoder)
    watched, alone = started(pipeline, PROMPTS[0]), started(pipeline, PROMPTS[0])
    for _ in steps_of(pipeline, watched):
        previewer.preview(watched)
    for _ in steps_of(pipeline, alone):
        pass
    assert torch.equal(watched.latents, alone.latents)


def test_a_fit_is_the_same_every_time(pipeline: Pipeline) -> None:
    first, second = (Previewer.fit(pipeline.autoencoder).colours for _ in range(2))
    assert torch.equal(first, second)


def test_a_straight_path_is_foreseen_from_its_first_step() -> None:
    noise, finished = torch.randn(2, 6, 64, generator=torch.Generator().manual_seed(0))
    sigmas = (1.0, 0.75, 0.5, 0.25, 0.0)
    sample = Sample(width=48, height=32, sigmas=sigmas, guidance_scale=0.0, passes=(), latents=noise)
    for step, sigma in enumerate(sigmas[1:], start=1):
        sample.before, sample.latents = sample.latents, sigma * noise + (1 - sigma) * finished
        sample.step = step
        # Two latents below 8 in magnitude are rounded, and their difference is scaled by at most 1 / 0.25.
        torch.testing.assert_close(predict_latents(sample), finished, rtol=0, atol=8 * 4 * 2**-23)
