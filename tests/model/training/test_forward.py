"""The pass that trains and the pass that serves are one function of the same weights."""

import math

import pytest
import torch

from model.config import TransformerConfig
from model.layout import Layout, Numerics, Shape, rope_table
from model.training.forward import velocity
from model.transformer import Transformer

CONFIG = TransformerConfig(
    hidden_size=64,
    num_heads=2,
    mlp_size=256,
    depth_double=2,
    depth_single=2,
    text_width=24,
    pooled_width=20,
    rope_axes=(4, 14, 14),
)
ROWS, COLUMNS, TXT = 4, 6, 5
IMG = ROWS * COLUMNS


@pytest.fixture
def transformer() -> Transformer:
    torch.manual_seed(0)
    transformer = Transformer(CONFIG)
    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return transformer


def inputs(n: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    return torch.randn(n, IMG, 64), torch.randn(n, TXT, 24), torch.randn(n, 20), torch.rand(n)


def rotation(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = rope_table(Shape(TXT, ROWS, COLUMNS), CONFIG).float().expand(n, -1, -1)
    return angles.cos(), angles.sin()


@torch.no_grad()
def test_training_and_serving_give_the_same_velocity(transformer: Transformer) -> None:
    img, txt, pooled, sigmas = inputs(3)
    trained = velocity(transformer, img, txt, pooled, sigmas, rotation(3), torch.zeros(3, 1, 1, TXT + IMG))
    layout = Layout.build(
        [Shape(TXT, ROWS, COLUMNS)] * 3, config=CONFIG, numerics=Numerics.FAST, device=torch.device("cpu")
    )
    served = transformer(
        img.flatten(0, 1),
        transformer.project_text(txt.flatten(0, 1)),
        torch.cat([transformer.modulate(sigmas[i : i + 1], pooled[i], None) for i in range(3)]),
        layout,
    )
    assert torch.allclose(trained.flatten(0, 1), served, atol=2e-5)


@torch.no_grad()
def test_a_token_that_stands_for_three_equals_three_of_it(transformer: Transformer) -> None:
    img, txt, pooled, sigmas = inputs(2)
    cos, sin = rotation(2)
    thrice = torch.cat([txt, txt[:, -1:], txt[:, -1:]], dim=1)
    where = [*range(TXT), TXT - 1, TXT - 1, *range(TXT, TXT + IMG)]
    spelt_out = velocity(
        transformer,
        img,
        thrice,
        pooled,
        sigmas,
        (cos[:, where], sin[:, where]),
        torch.zeros(2, 1, 1, len(where)),
    )
    stands_for = torch.zeros(2, 1, 1, TXT + IMG)
    stands_for[..., TXT - 1] = math.log(3)
    short = velocity(transformer, img, txt, pooled, sigmas, (cos, sin), stands_for)
    assert torch.allclose(short, spelt_out, atol=2e-5)


@torch.no_grad()
def test_what_is_not_there_changes_nothing(transformer: Transformer) -> None:
    img, txt, pooled, sigmas = inputs(1)
    cos, sin = rotation(1)
    keep = [0, 1, 2, *range(TXT, TXT + IMG)]
    cut = velocity(
        transformer,
        img,
        txt[:, :3],
        pooled,
        sigmas,
        (cos[:, keep], sin[:, keep]),
        torch.zeros(1, 1, 1, len(keep)),
    )
    stands_for = torch.zeros(1, 1, 1, TXT + IMG)
    stands_for[..., 3:TXT] = -math.inf
    masked = velocity(transformer, img, txt, pooled, sigmas, (cos, sin), stands_for)
    assert torch.allclose(cut, masked, atol=2e-5)


def test_gradients_reach_every_weight(transformer: Transformer) -> None:
    img, txt, pooled, sigmas = inputs(2)
    velocity(
        transformer, img, txt, pooled, sigmas, rotation(2), torch.zeros(2, 1, 1, TXT + IMG)
    ).square().mean().backward()
    without = {name for name, p in transformer.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == set()
