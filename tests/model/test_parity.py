"""In float32 our pictures are those of diffusers: latents within 1e-5 relative, pixels within 1 of 255."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import FluxPipeline

from kernels import reference as ops
from kernels.dispatch import KernelsName
from model.conditioning import Prompt
from model.layout import Numerics
from model.pipeline import Pipeline
from tests.model.conftest import Oracle

PROMPT = "a red circle above two small green stars at night"


@dataclass(frozen=True)
class Run:
    width: int = 256
    height: int = 256
    steps: int = 2
    seed: int = 0
    length: int = 64
    guidance: float = 0.0
    negative: str = ""
    prompt: str = PROMPT


def load(folder: Path, numerics: Numerics = Numerics.EXACT, kernels: KernelsName = "auto") -> Pipeline:
    return Pipeline.load(
        folder, device=torch.device("cpu"), dtype=torch.float32, numerics=numerics, kernels=kernels
    )


def our_latents(pipeline: Pipeline, run: Run) -> tuple[torch.Tensor, np.ndarray]:
    prompts = [Prompt(run.prompt, run.length)]
    if pipeline.uses_negative(run.guidance):
        prompts.append(Prompt(run.negative, run.length))
    conditionings = pipeline.encode(prompts)
    sample = pipeline.start(
        conditioning=conditionings[0],
        negative=conditionings[1] if len(conditionings) > 1 else None,
        width=run.width,
        height=run.height,
        steps=run.steps,
        seed=run.seed,
        guidance_scale=run.guidance,
    )
    while not sample.finished:
        pipeline.denoise_step([sample])
    return sample.latents, pipeline.decode([sample])[0]


def their_latents(oracle: FluxPipeline, run: Run) -> tuple[torch.Tensor, np.ndarray]:
    dev = oracle.transformer.config.guidance_embeds
    arguments = {
        "prompt": run.prompt,
        "width": run.width,
        "height": run.height,
        "num_inference_steps": run.steps,
        "max_sequence_length": run.length,
        "guidance_scale": run.guidance if dev else 3.5,
    }
    if not dev and run.guidance > 1:
        arguments |= {"negative_prompt": run.negative, "true_cfg_scale": run.guidance}
    with torch.inference_mode():
        latents = oracle(
            **arguments, generator=torch.Generator().manual_seed(run.seed), output_type="latent"
        ).images
        unpacked = oracle._unpack_latents(latents, run.height, run.width, oracle.vae_scale_factor)
        scaled = unpacked / oracle.vae.config.scaling_factor + oracle.vae.config.shift_factor
        decoded = oracle.vae.decode(scaled, return_dict=False)[0]
        (pixels,) = oracle.image_processor.postprocess(decoded, output_type="pil")
    return latents[0], np.asarray(pixels)


def assert_same_picture(pipeline: Pipeline, oracle: FluxPipeline, run: Run) -> None:
    latents, pixels = our_latents(pipeline, run)
    expected, expected_pixels = their_latents(oracle, run)
    assert (latents - expected).norm() / expected.norm() <= 1e-5
    assert pixels.shape == (run.height, run.width, 3)
    assert np.abs(pixels.astype(int) - expected_pixels.astype(int)).max() <= 1
    assert pixels.std() > 1, "a blank picture would agree with anything"


@pytest.mark.parametrize(
    "run",
    [
        Run(steps=1),
        Run(steps=3, seed=2**32 + 5),
        Run(width=512, height=512, steps=2, length=256),
        Run(width=256, height=384, steps=4, length=128),
        Run(width=384, height=256, steps=3, length=512),
        Run(width=272, height=496, steps=2, seed=99),
        Run(prompt="", steps=2),
        Run(prompt="a cat " * 200, steps=2),
        Run(prompt="ein Bär — 熊 🐻\n\tfür  alle", steps=2),
        Run(guidance=3.0, negative="blue, dark", steps=3),
        Run(guidance=1.5, negative="", steps=2, width=272, height=256),
    ],
    ids=str,
)
@pytest.mark.parametrize("numerics", list(Numerics))
def test_schnell_agrees_with_diffusers(oracle: Oracle, run: Run, numerics: Numerics) -> None:
    theirs, folder = oracle()
    assert_same_picture(load(folder, numerics), theirs, run)


def test_the_reference_agrees_with_diffusers(oracle: Oracle) -> None:
    """Where the processor has faster matrix products, the tests above have run those."""
    theirs, folder = oracle()
    assert_same_picture(load(folder, kernels="reference"), theirs, Run(width=272, height=496, steps=2))


@pytest.mark.parametrize(
    "run",
    [Run(guidance=3.5, steps=4), Run(guidance=7.0, steps=3, width=512, height=384, length=512)],
    ids=str,
)
def test_dev_agrees_with_diffusers(oracle: Oracle, run: Run) -> None:
    theirs, folder = oracle(dev=True)
    assert_same_picture(load(folder), theirs, run)


def larger_norm_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "NORM_EPS", 1e-5)


def exact_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    def gelu(x: torch.Tensor, products: tuple[int, ...], out: torch.Tensor | None = None) -> torch.Tensor:
        return F.gelu(x) if out is None else out.copy_(F.gelu(x))

    monkeypatch.setattr(ops, "gelu_tanh", gelu)


def half_precision_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = ops.rope
    monkeypatch.setattr(
        ops, "rope", lambda x, cos, sin: rope(x, cos.bfloat16().float(), sin.bfloat16().float())
    )


@pytest.mark.parametrize(
    "mistake", [larger_norm_epsilon, exact_gelu, half_precision_tables], ids=lambda mistake: mistake.__name__
)
def test_small_mistakes_are_caught(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Weights of small magnitude, where an epsilon counts: the right code agrees, the wrong one does not."""
    theirs, folder = oracle(small=True)
    run = Run(steps=4)
    pipeline = load(folder, kernels="reference")
    assert_same_picture(pipeline, theirs, run)
    mistake(monkeypatch)
    expected, _ = their_latents(theirs, run)
    wrong, _ = our_latents(pipeline, run)
    assert (wrong - expected).norm() / expected.norm() > 1e-5
