"""In float32 our pictures are those of diffusers: latents within 1e-5 relative, pixels within 1 of 255."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from kernels import reference as ops
from model.layout import Numerics
from tests.model.conftest import Oracle
from tests.model.parity import (
    LATENTS,
    Run,
    assert_same_picture,
    distance,
    load,
    our_picture,
    their_picture,
)


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
    assert_same_picture(load(folder, numerics=numerics), theirs, run)


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
    expected, _ = their_picture(theirs, run)
    wrong, _ = our_picture(pipeline, run)
    assert distance(wrong, expected) > LATENTS
