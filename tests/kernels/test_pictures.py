"""The Euler step and the pixels, in Triton, against the reference."""

import pytest
import torch

from kernels import pictures, reference
from tests.kernels.worlds import DEVICE, columns_of, dtypes, owners, random


@dtypes
def test_euler_step_moves_each_sample_by_its_own_step(dtype: torch.dtype) -> None:
    layout = owners(5, 1, 18)
    latents, velocity = random(24, 64, seed=0), columns_of(random(24, 64, seed=1, dtype=dtype))
    deltas = torch.tensor([-0.3, -1.0, -0.7], device=DEVICE)  # products that half precision rounds
    ours = pictures.euler_step(latents, velocity, deltas, layout)
    # one rounding less where the compiler fuses the product and the sum
    torch.testing.assert_close(ours, reference.euler_step(latents, velocity, deltas, layout))


@dtypes
@pytest.mark.parametrize("channels_last", [True, False])
def test_pixels_are_those_of_the_reference(dtype: torch.dtype, channels_last: bool) -> None:
    image = random(1, 3, 16, 400, seed=0, dtype=dtype)
    if channels_last:
        image = image.to(memory_format=torch.channels_last)
    assert torch.equal(pictures.to_pixels(image[0]), reference.to_pixels(image[0]))


def test_ties_round_to_even() -> None:
    values = (torch.arange(255, dtype=torch.float64) + 0.5) / 255 * 2 - 1
    image = values.float().view(1, 1, -1).expand(3, 1, -1).to(DEVICE)
    exact = image.float() * 0.5 + 0.5
    assert ((exact * 255) % 1 == 0.5).any(), "some of these are ties"
    assert torch.equal(pictures.to_pixels(image), reference.to_pixels(image))


def test_what_does_not_fit_is_refused() -> None:
    latents, deltas = random(4, 64, seed=0), torch.zeros(1, device=DEVICE)
    for arguments, message in (
        ((latents.half(), latents, deltas, owners(4)), "latents: .*float16.*allowed: float32"),
        ((latents, latents[:, :32], deltas, owners(4)), r"velocity: shape \[4, 32\]"),
        ((latents, latents, deltas.double(), owners(4)), r"deltas: .*float64.*allowed: float32 \[1\]"),
        ((latents, latents, deltas, owners(3)), "the layout has 3 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            pictures.euler_step(*arguments)
    with pytest.raises(ValueError, match=r"image: shape \[4, 2, 2\].*allowed: floating point \[3"):
        pictures.to_pixels(random(4, 2, 2, seed=0))
