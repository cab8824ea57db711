"""Training the autoencoder: crops of the world's pictures, sharp edges, latents that forgive small errors."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kernels.reference import to_pixels
from model.autoencoder import Autoencoder
from model.config import AutoencoderConfig
from model.training.chance import Chance
from model.training.drawing import PATCH, Picture, draw
from model.training.optimizer import Optimizer
from model.training.recipe import Recipe
from model.training.run import Draws, run
from model.training.world import random_scene

CONFIG = AutoencoderConfig(
    channels=(16, 32, 64, 64),
    blocks_per_level=1,
    norm_groups=8,
    scaling_factor=1.0,
    shift_factor=0.0,
    sample_size=256,
)
_STAGES = ((0.6, 64, 8), (0.92, 128, 2), (1.0, 256, 1))  # until, crop in pixels, pictures a part
_SIZES = ((256, 256, 80), (256, 384, 7), (384, 256, 7), (512, 512, 5), (1024, 1024, 1))  # and their shares
_NOISE = 0.3  # in standard deviations of the latents
_KL_WEIGHT = 5e-4


def train(folder: Path, recipe: Recipe) -> Autoencoder:
    """Train, or take up, and return the autoencoder, frozen, with its scaling and shift measured."""
    torch.manual_seed(0)
    autoencoder = Autoencoder(CONFIG).to(recipe.device)
    optimizer = Optimizer(autoencoder.named_parameters(), muon_rate=4e-3, adam_rate=2e-3, average=0.998)
    pool = cache(lambda: pictures(random.Random(1), recipe.autoencoder_pictures, _SIZES))
    kept = torch.stack([to_model(picture) for picture in pictures(random.Random(2), 16, _SIZES[:1])])
    kept = kept.to(recipe.device)
    steps = recipe.autoencoder_steps

    def part(draws: Draws) -> Tensor:
        side, count = next((s, n) for until, s, n in _STAGES if optimizer.steps < until * steps)
        crops = [crop(draws.rng.choice(pool()), side, draws.rng) for _ in range(count)]
        return loss(autoencoder, torch.stack(crops).to(recipe.device), draws)

    def look(number: int) -> None:
        _look(autoencoder, kept, folder / f"autoencoder-{number:05d}.png")

    file = folder / "autoencoder.safetensors"
    run("autoencoder", file, autoencoder, optimizer, steps, part, look=look, look_every=800)
    mean, deviation = statistics(autoencoder, kept)
    return with_scaling(autoencoder, scaling=1 / deviation, shift=mean).to(recipe.device)


def loss(autoencoder: Autoencoder, images: Tensor, draws: Draws) -> Tensor:
    """L1, L2 and L1 of the gradients, and the divergence of the posterior; images are [n, 3, h, w]."""
    with torch.autocast(images.device.type, torch.bfloat16):
        mean, logvar = autoencoder.encoder(images).float().chunk(2, dim=1)
        logvar = logvar.clamp(-12, 6)
        noisy = draws.uniform(len(images), 1, 1, 1) < 0.7
        amount = (_NOISE * draws.uniform(len(images), 1, 1, 1) * noisy).to(images.device)
        spread = (torch.exp(logvar) + (amount * mean.detach().std()).square()).sqrt()
        z = mean + spread * draws.normal(*mean.shape).to(images.device)
        out = autoencoder.decoder(z).float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    edges = sum(F.l1_loss(out.diff(dim=d), images.diff(dim=d)) for d in (2, 3))
    total: Tensor = (
        F.l1_loss(out, images) + 2 * F.mse_loss(out, images) + 0.4 * edges + _KL_WEIGHT * divergence
    )
    return total


def pictures(rng: random.Random, count: int, sizes: Sequence[tuple[int, int, int]]) -> list[Picture]:
    """Draw `count` random scenes; `sizes` are height, width and share."""
    drawn = []
    for _ in range(count):
        height, width = rng.choices([size[:2] for size in sizes], [size[2] for size in sizes])[0]
        chance = Chance.draw(np.random.default_rng(rng.randrange(2**32)), height // PATCH, width // PATCH)
        drawn.append(draw(random_scene(rng), chance, height, width))
    return drawn


def to_model(picture: Picture) -> Tensor:
    """uint8 [h, w, 3] to float32 [3, h, w] in [-1, 1]."""
    return torch.tensor(picture).permute(2, 0, 1).float() / 127.5 - 1


def crop(picture: Picture, side: int, rng: random.Random) -> Tensor:
    """Cut a square out, flipped, and now and then with colours swapped or inverted."""
    height, width, _ = picture.shape
    top, left = rng.randint(0, height - side), rng.randint(0, width - side)
    image = to_model(picture[top : top + side, left : left + side])
    if rng.random() < 0.5:
        image = image.flip(2)
    if rng.random() < 0.3:
        image = image[rng.sample(range(3), 3)]
    return -image if rng.random() < 0.1 else image


@torch.no_grad()
def statistics(autoencoder: Autoencoder, images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the latents."""
    latents = autoencoder.encode(images)
    return latents.mean().item(), latents.std().item()


def with_scaling(autoencoder: Autoencoder, *, scaling: float, shift: float) -> Autoencoder:
    """The same weights under a configuration whose latents have mean 0 and deviation 1."""
    config = replace(CONFIG, scaling_factor=scaling, shift_factor=shift)
    scaled = Autoencoder(config).eval().requires_grad_(False)
    scaled.load_state_dict(autoencoder.state_dict())
    return scaled


@torch.no_grad()
def _look(autoencoder: Autoencoder, images: Tensor, file: Path) -> None:
    """Write a sheet of pictures over their reconstructions, and print how near they are."""
    decoded = autoencoder.decode(autoencoder.encode(images)).clamp(-1, 1)
    nearness = -10 * ((images - decoded) / 2).square().mean(dim=(1, 2, 3)).log10()
    print(f"\nautoencoder: {nearness.mean():.1f} dB, worst {nearness.min():.1f} dB")
    sheet = torch.cat([torch.cat([*row[:6]], 2) for row in (images, decoded)], 1)
    Image.fromarray(to_pixels(sheet).cpu().numpy()).save(file)
