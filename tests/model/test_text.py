"""T5 on our norms encodes as transformers' own does."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from kernels.ops import Ops, reference_ops, triton_ops
from model.text import T5
from tests.kernels.worlds import DEVICE
from tests.model.conftest import Oracle

TEXTS = ("a red circle", "", "two green stars above a tree")
LENGTH = 48


def theirs(oracle: Oracle) -> tuple[T5EncoderModel, T5Tokenizer]:
    pipeline = oracle()[0]
    return deepcopy(pipeline.text_encoder_2).to(DEVICE), pipeline.tokenizer_2


@torch.inference_mode()
def encoded(model: T5EncoderModel, tokenizer: T5Tokenizer) -> Tensor:
    ids = tokenizer(list(TEXTS), padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    states: Tensor = model(input_ids=ids.to(DEVICE)).last_hidden_state
    return states


@pytest.mark.parametrize("ops", [reference_ops(), triton_ops()], ids=["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.inference_mode()
def test_t5_agrees_with_transformers(oracle: Oracle, ops: Ops, dtype: torch.dtype) -> None:
    """Each norm is off by a rounding of either side; with a factor of four for what follows it."""
    model, tokenizer = theirs(oracle)
    model = model.to(dtype)
    expected = encoded(model, tokenizer)
    calls: list[tuple[int, ...]] = []

    def noted(x: Tensor, scale: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return ops.rms_norm(x, scale)

    t5 = T5(model, tokenizer, replace(ops, rms_norm=noted), device=DEVICE)
    actual = t5.encode(TEXTS, length=LENGTH)
    norms = 2 * model.config.num_layers + 1
    assert calls == [(len(TEXTS) * LENGTH, model.config.d_model)] * norms
    assert actual.dtype == dtype
    away = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert away <= 4 * (2 * norms) ** 0.5 * torch.finfo(dtype).eps / 2


def test_another_epsilon_keeps_transformers_norms(oracle: Oracle) -> None:
    model, tokenizer = theirs(oracle)
    config = deepcopy(model.config)
    config.layer_norm_epsilon = 1e-5
    other = T5EncoderModel(config).eval().to(DEVICE)
    expected = encoded(other, tokenizer)
    with torch.inference_mode():
        actual = T5(other, tokenizer, reference_ops(), device=DEVICE).encode(TEXTS, length=LENGTH)
    assert torch.equal(actual, expected)
