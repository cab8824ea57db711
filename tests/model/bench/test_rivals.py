"""diffusers on our weights makes our pictures: eager and compiled, alike sizes and mixed ones."""

import numpy as np
import pytest
import torch
from transformers import CLIPTextConfig, T5Config

from kernels.ops import reference_ops
from model.bench.contest import Contestant, Work
from model.bench.ours import Ours
from model.bench.rivals import Compiled, Diffusers
from model.config import AutoencoderConfig, TransformerConfig
from model.layout import Numerics
from model.pipeline import Pipeline
from model.quantization import Quantization
from model.random_weights import random_pipeline
from model.sizes import Sizes

SMALL = Sizes(
    TransformerConfig(
        hidden_size=64,
        num_heads=2,
        mlp_size=256,
        depth_double=1,
        depth_single=2,
        text_width=32,
        pooled_width=64,
        rope_axes=(4, 14, 14),
    ),
    AutoencoderConfig(channels=(8, 16, 16, 16), norm_groups=4),
    CLIPTextConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1
    ),
    T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2),
)


def small_pipeline(quantization: Quantization = Quantization.NONE) -> Pipeline:
    return random_pipeline(
        SMALL,
        reference_ops(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        numerics=Numerics.EXACT,
        quantization=quantization,
    )


def painted(contestant: Contestant, work: Work) -> tuple[list[np.ndarray], list[str]]:
    stages: list[str] = []
    return contestant.run(work, stages.append), stages


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return small_pipeline()


@pytest.mark.parametrize("sides", [(64,), (64, 64, 64), (64, 48, 80, 48)], ids=str)
def test_diffusers_makes_the_same_pictures(pipeline: Pipeline, sides: tuple[int, ...]) -> None:
    work = Work(sides, steps=2, text_length=24)
    expected, ours = painted(Ours(pipeline), work)
    actual, theirs = painted(Diffusers(pipeline), work)
    for one, other, side in zip(expected, actual, sides, strict=True):
        assert one.shape == other.shape == (side, side, 3)
        assert np.abs(one.astype(int) - other.astype(int)).max() <= 1
        assert one.std() > 1, "a blank picture would agree with anything"
    assert ours == ["text", "start", "step", "step", "decode", "png"]
    assert theirs == ["text", "step", "step", "decode", "png"] * len(set(sides))


def test_compiled_makes_them_too(pipeline: Pipeline) -> None:
    """Traced as for a GPU, and then run by PyTorch: its compiler is not what is tested here."""
    work = Work((64, 64), steps=1, text_length=24)
    rival = Compiled(pipeline, mode="default", backend="eager")
    assert rival.name == "diffusers compiled, default"
    expected, _ = painted(Ours(pipeline), work)
    actual, _ = painted(rival, work)
    assert (
        max(np.abs(a.astype(int) - b.astype(int)).max() for a, b in zip(expected, actual, strict=True)) <= 1
    )


def test_it_has_our_weights_and_no_others(pipeline: Pipeline) -> None:
    ours, theirs = Ours(pipeline), Diffusers(pipeline)
    assert theirs.weight_bytes == ours.weight_bytes
    place = pipeline.transformer.single_blocks[0].linear1.weight
    first = theirs.pipeline.transformer.single_transformer_blocks[0].attn.to_q.weight
    assert first.data_ptr() == place.data_ptr()


def test_eight_bits_change_the_picture_little_and_halve_the_weights(pipeline: Pipeline) -> None:
    quantised = Ours(small_pipeline(Quantization.WEIGHTS))
    assert quantised.name == "ours fp8"
    assert quantised.weight_bytes < Ours(pipeline).weight_bytes
    work = Work((64,), steps=2, text_length=24)
    (plain,), _ = painted(Ours(pipeline), work)
    (eight,), _ = painted(quantised, work)
    assert 0 < np.abs(plain.astype(int) - eight.astype(int)).mean() < 8  # of 255
