"""Noise, packing and schedules against published check values and diffusers."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

from model.config import ScheduleConfig
from model.sampling import check_size, draw_noise, pack, schedule_sigmas, unpack
from tests.checkpoints import DEV_SCHEDULER

PUBLISHED_DIGITS = 1.2e-7  # half a unit of the seventh decimal, and one float32 ulp below 1
DEV = ScheduleConfig(use_dynamic_shifting=True, shift=3.0)


def test_noise_of_seed_0_is_the_published_one() -> None:
    noise = draw_noise(seed=0, width=1024, height=1024)
    assert noise.shape == (4096, 64)
    assert noise.dtype == torch.float32
    expected = torch.tensor([-0.2505786, -0.4338788, -0.8048265, 0.5656096, 1.0035588])
    torch.testing.assert_close(noise[1, :5], expected, rtol=0, atol=PUBLISHED_DIGITS)


def test_noise_of_seed_42_is_the_published_one() -> None:
    latents = unpack(draw_noise(seed=42, width=1024, height=1024)[None], width=1024, height=1024)
    expected = torch.tensor([1.9269153, 1.4872841, 0.9007172, -2.1055210, 0.6784185, -1.2345449])
    torch.testing.assert_close(latents.flatten()[:6], expected, rtol=0, atol=PUBLISHED_DIGITS)


def test_noise_accepts_the_largest_seed() -> None:
    largest = draw_noise(seed=2**53 - 1, width=256, height=256)
    assert not torch.equal(largest, draw_noise(seed=2**53 - 2, width=256, height=256))


def test_packing_is_that_of_diffusers() -> None:
    latents = torch.randn(2, 16, 6, 10)
    packed = FluxPipeline._pack_latents(latents, 2, 16, 6, 10)
    assert torch.equal(pack(latents), packed)
    assert torch.equal(unpack(packed, width=80, height=48), latents)


@pytest.mark.parametrize("steps", range(1, 13))
def test_schnell_sigmas_are_those_of_diffusers(steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).numpy())
    assert schedule_sigmas(ScheduleConfig(), steps=steps, tokens=256) == tuple(scheduler.sigmas.tolist())


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (256, [1, 0.8318243, 0.6224594, 0.3546612, 0]),
        (1024, [1, 0.8492348, 0.6524894, 0.3849447, 0]),
        (4096, [1, 0.9045308, 0.7595109, 0.5128441, 0]),
    ],
)
def test_dev_sigmas_shift_with_the_image(tokens: int, expected: list[float]) -> None:
    assert schedule_sigmas(DEV, steps=4, tokens=tokens) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tokens", [256, 500, 9216])
@pytest.mark.parametrize("steps", [1, 3, 28])
def test_dev_sigmas_are_those_of_diffusers(tokens: int, steps: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(**DEV_SCHEDULER)
    mu = (tokens - 256) * (1.15 - 0.5) / (4096 - 256) + 0.5
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps, dtype=torch.float64).numpy(), mu=mu)
    ours = schedule_sigmas(DEV, steps=steps, tokens=tokens)
    assert ours == pytest.approx(scheduler.sigmas.tolist(), abs=1e-7)


def test_a_constant_shift_is_that_of_diffusers() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    ours = schedule_sigmas(ScheduleConfig(shift=3.0), steps=4, tokens=256)
    assert ours == pytest.approx(scheduler.sigmas.tolist(), abs=1e-7)


@pytest.mark.parametrize(("width", "height", "wrong"), [(250, 256, "width 250"), (256, 0, "height 0")])
def test_a_wrong_size_is_named(width: int, height: int, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        check_size(width=width, height=height)
