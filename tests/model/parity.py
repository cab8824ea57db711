"""One run by our pipeline and by diffusers, with or without a picture to start from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline, FluxPipeline
from PIL import Image

from model.conditioning import Prompt
from model.layout import Numerics
from model.pipeline import Pipeline, Pixels
from model.sampling import Sample
from model.source import Source
from tests.pictures import ragged_mask, source_pixels

PROMPT = "a red circle above two small green stars at night"
LATENTS = 1e-5  # how far they may be apart, of their norm


@dataclass(frozen=True)
class Run:
    """What to make; with a `strength` it starts from `source_pixels`, and `masked` keeps some of them."""

    width: int = 256
    height: int = 256
    steps: int = 2
    seed: int = 0
    length: int = 64
    guidance: float = 0.0
    negative: str = ""
    prompt: str = PROMPT
    strength: float | None = None
    masked: bool = False

    @property
    def source(self) -> Source | None:
        if self.strength is None:
            return None
        pixels = source_pixels(self.width, self.height)
        mask = ragged_mask(self.width, self.height) if self.masked else None
        return Source(pixels, self.strength, mask)


def load(folder: Path, **options: Any) -> Pipeline:
    """Load it in float32 and exact numerics on a CPU, where `options` of `Pipeline.load` say nothing else."""
    usual = {"device": torch.device("cpu"), "dtype": torch.float32, "numerics": Numerics.EXACT}
    return Pipeline.load(folder, **usual | options)


def begin(pipeline: Pipeline, run: Run) -> Sample:
    prompts = [Prompt(run.prompt, run.length)]
    if pipeline.uses_negative(run.guidance):
        prompts.append(Prompt(run.negative, run.length))
    conditionings = pipeline.encode(prompts)
    return pipeline.start(
        conditioning=conditionings[0],
        negative=conditionings[1] if len(conditionings) > 1 else None,
        width=run.width,
        height=run.height,
        steps=run.steps,
        seed=run.seed,
        guidance_scale=run.guidance,
        source=run.source,
    )


def finish(pipeline: Pipeline, samples: Sequence[Sample]) -> None:
    """Denoise them together, each until it is done."""
    while unfinished := [sample for sample in samples if not sample.finished]:
        pipeline.denoise_step(unfinished)


def our_picture(pipeline: Pipeline, run: Run) -> tuple[torch.Tensor, Pixels]:
    """Return the final latents [tokens, 64] and the pixels."""
    sample = begin(pipeline, run)
    finish(pipeline, [sample])
    return sample.latents, pipeline.decode([sample])[0]


def their_picture(oracle: FluxPipeline, run: Run) -> tuple[torch.Tensor, Pixels]:
    """Return the final latents [tokens, 64] and the pixels."""
    dev = oracle.transformer.config.guidance_embeds
    arguments: dict[str, Any] = {
        "prompt": run.prompt,
        "width": run.width,
        "height": run.height,
        "num_inference_steps": run.steps,
        "max_sequence_length": run.length,
        "guidance_scale": run.guidance if dev else 3.5,
    }
    if not dev and run.guidance > 1:
        arguments |= {"negative_prompt": run.negative, "true_cfg_scale": run.guidance}
    pipeline = oracle
    if (source := run.source) is not None:
        kind = FluxImg2ImgPipeline if source.mask is None else FluxInpaintPipeline
        pipeline = kind(**oracle.components)
        pipeline.set_progress_bar_config(disable=True)
        arguments |= {"image": Image.fromarray(source.pixels), "strength": source.strength}
        if source.mask is not None:
            arguments["mask_image"] = Image.fromarray(source.mask)
    with torch.inference_mode():
        latents = pipeline(
            **arguments, generator=torch.Generator().manual_seed(run.seed), output_type="latent"
        ).images
        unpacked = oracle._unpack_latents(latents, run.height, run.width, oracle.vae_scale_factor)
        scaled = unpacked / oracle.vae.config.scaling_factor + oracle.vae.config.shift_factor
        decoded = oracle.vae.decode(scaled, return_dict=False)[0]
        (pixels,) = oracle.image_processor.postprocess(decoded, output_type="pil")
    return latents[0], np.asarray(pixels)


def distance(latents: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference, of the norm of what is expected."""
    return float((latents - expected).norm() / expected.norm())


def assert_same_picture(pipeline: Pipeline, oracle: FluxPipeline, run: Run) -> None:
    latents, pixels = our_picture(pipeline, run)
    expected, expected_pixels = their_picture(oracle, run)
    assert distance(latents, expected) <= LATENTS
    assert pixels.shape == (run.height, run.width, 3)
    assert np.abs(pixels.astype(int) - expected_pixels.astype(int)).max() <= 1
    assert pixels.std() > 1, "a blank picture would agree with anything"
