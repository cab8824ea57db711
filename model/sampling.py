"""A picture on its way, its noise, schedule and packing: everything about sampling that needs no weights.

A picture's noise comes from its own seed, drawn on the CPU in float32, so that a seed means the same picture
on every machine and in every batch. Formulas: black-forest-labs/flux, src/flux/sampling.py, and diffusers'
FlowMatchEulerDiscreteScheduler.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.config import ScheduleConfig
from model.layout import Layout
from model.lora import Scaled

LATENT_CHANNELS = 16
PIXELS_PER_LATENT = 8
PIXELS_PER_PATCH = 16


@dataclass(frozen=True, slots=True)
class Pass:
    """One conditioning of one sample: text rows [txt_rows, width], modulation vectors [steps, ...]."""

    txt: Tensor
    modulation: Tensor


@dataclass(frozen=True, slots=True)
class Kept:
    """What a step may not change of a picture: all of its `latents` where not `redrawn`.

    `latents` and `noise` [tokens, 64] are those that the sample began with; `redrawn` is bool [tokens, 64].
    """

    latents: Tensor
    noise: Tensor
    redrawn: Tensor

    def put_back(self, latents: Tensor, sigma: float) -> Tensor:
        """Return `latents` [tokens, 64] with what is kept as it is at the time `sigma`."""
        return torch.where(self.redrawn, latents, add_noise(self.latents, self.noise, sigma))


@dataclass(slots=True)
class Sample:
    """One picture on its way. `latents` are packed, [tokens, 64], float32.

    At the start they are noise, or those of a source with noise added: then `sigmas` begin in the middle of
    the schedule. With classifier-free guidance `passes` has two entries, the prompt and the negative prompt.
    `before` is what `latents` were before the last step. `adapters` hold for all its passes; `layout` is
    that of the last step with adapters.
    """

    width: int
    height: int
    sigmas: tuple[float, ...]
    guidance_scale: float
    passes: tuple[Pass, ...]
    latents: Tensor
    kept: Kept | None = None
    step: int = 0
    before: Tensor | None = None
    adapters: tuple[Scaled, ...] = ()
    layout: Layout | None = None

    @property
    def finished(self) -> bool:
        return self.step == len(self.sigmas) - 1


def check_size(*, width: int, height: int) -> None:
    """Raise `ValueError` unless both sides are positive multiples of the 16 pixels of a patch."""
    for name, side in (("width", width), ("height", height)):
        if side < PIXELS_PER_PATCH or side % PIXELS_PER_PATCH:
            raise ValueError(f"{name} {side} is not a positive multiple of {PIXELS_PER_PATCH}")


def draw_noise(*, seed: int, width: int, height: int) -> Tensor:
    """Draw the packed noise [tokens, 64] of one picture of `width` x `height` pixels, float32 on the CPU.

    The same numbers that diffusers draws from a CPU generator of this seed.
    """
    return pack(draw_latents(seeded(seed), width=width, height=height))[0]


def seeded(seed: int) -> torch.Generator:
    """Return what all random numbers of one picture are drawn from, in the order of their use."""
    return torch.Generator("cpu").manual_seed(seed)


def draw_latents(generator: torch.Generator, *, width: int, height: int) -> Tensor:
    """Draw standard normal latents [1, 16, h, w] of a picture, float32 on the CPU."""
    shape = (1, LATENT_CHANNELS, height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)
    return torch.randn(shape, generator=generator)


def add_noise(latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """Return what `latents` are at the time `sigma` of a rectified flow from `noise`, which is that at 1."""
    return sigma * noise + (1 - sigma) * latents


def pack(latents: Tensor) -> Tensor:
    """Turn latents [n, 16, h, w] into tokens [n, h/2 * w/2, 64]; the channel order is (c, dy, dx)."""
    n, c, h, w = latents.shape
    patches = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(n, (h // 2) * (w // 2), c * 4)


def unpack(tokens: Tensor, *, width: int, height: int) -> Tensor:
    """Turn tokens [n, tokens, 64] of a picture of `width` x `height` pixels into latents [n, 16, h, w]."""
    rows, columns = height // PIXELS_PER_PATCH, width // PIXELS_PER_PATCH
    patches = tokens.view(-1, rows, columns, LATENT_CHANNELS, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(-1, LATENT_CHANNELS, 2 * rows, 2 * columns)


def schedule_sigmas(schedule: ScheduleConfig, *, steps: int, tokens: int) -> tuple[float, ...]:
    """Return the `steps + 1` times of a run, from 1 down to 0, as float32 values.

    schnell's are linear; dev's are shifted by `mu`, which grows with the image tokens; a constant `shift`
    is applied when there is no dynamic one.
    """
    sigmas = np.linspace(1.0, 1.0 / steps, steps)
    if schedule.use_dynamic_shifting:
        sigmas = _shift(sigmas, math.exp(_mu(schedule, tokens)))
    elif schedule.shift != 1.0:
        sigmas = schedule.shift * sigmas / (1 + (schedule.shift - 1) * sigmas)
    return (*(float(sigma) for sigma in sigmas.astype(np.float32)), 0.0)


def predict_latents(sample: Sample) -> Tensor:
    """Estimate the finished latents [tokens, 64] of a sample that has made a step: `x0 = x_t - sigma_t * v`.

    `v` is the velocity of the last step, and a rectified flow is nearly straight (Liu et al. 2022,
    arXiv:2209.03003).
    """
    assert sample.before is not None, "noise tells nothing of the picture"
    before_sigma, sigma = sample.sigmas[sample.step - 1 : sample.step + 1]
    velocity = (sample.latents - sample.before) / (sigma - before_sigma)
    return sample.latents - sigma * velocity


def _mu(schedule: ScheduleConfig, tokens: int) -> float:
    slope = (schedule.max_shift - schedule.base_shift) / (
        schedule.max_image_tokens - schedule.base_image_tokens
    )
    return slope * (tokens - schedule.base_image_tokens) + schedule.base_shift


def _shift(sigmas: np.ndarray, factor: float) -> np.ndarray:
    shifted: np.ndarray = factor / (factor + (1 / sigmas - 1))
    return shifted


def guided(velocities: list[Tensor], guidance_scale: float) -> Tensor:
    """Classifier-free guidance: `negative + scale * (positive - negative)`; one pass is left as it is."""
    if len(velocities) == 1:
        return velocities[0]
    positive, negative = velocities
    return negative + guidance_scale * (positive - negative)
