import numpy as np
import torch

from model.sampling import draw_noise
from model.training.chance import Chance, noise_around


def test_noise_drawn_around_a_chance_tells_that_chance() -> None:
    chance = Chance.draw(np.random.default_rng(0), 4, 6)
    is_first = torch.arange(24)[None] == 0
    noise = noise_around(
        torch.tensor(chance.whole)[None],
        torch.tensor(chance.grain).view(1, 24, 4),
        torch.randn(1, 24, 64),
        is_first,
    )
    read = Chance.of_noise(noise[0], 4, 6)
    assert np.allclose(read.whole, chance.whole)
    assert np.allclose(read.grain.reshape(24, 4)[1:], chance.grain.reshape(24, 4)[1:], atol=1e-6)


def test_noise_around_random_chances_is_standard_normal() -> None:
    torch.manual_seed(0)
    n, tokens = 200, 16
    is_first = (torch.arange(tokens) == 0).expand(n, -1)
    noise = noise_around(torch.randn(n, 5), torch.randn(n, tokens, 4), torch.randn(n, tokens, 64), is_first)
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 1) < 0.01
    covariance = torch.cov(noise[:, 1:].flatten(0, 1).t())
    assert (covariance - torch.eye(64)).abs().max() < 0.1


def test_the_noise_of_a_seed_has_its_chance() -> None:
    noise = draw_noise(seed=7, width=256, height=256)
    chance = Chance.of_noise(noise, 16, 16)
    assert np.allclose(chance.whole, noise[0, :5].numpy())
    assert -1 <= chance.right <= 1
    assert chance.grain.shape == (16, 16, 4)
    assert abs(float(chance.grain.std()) - 1) < 0.1
