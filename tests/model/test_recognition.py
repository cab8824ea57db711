"""What a file holds is told by its tensors; shapes that no model has are refused and never built."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.bundle import open_bundles
from model.checkpoint import Checkpoint, CheckpointError, load_into, open_checkpoint
from model.transformer import Transformer
from tests.model import layouts
from tests.model.conftest import Oracle


@pytest.fixture
def original(oracle: Oracle, tmp_path: Path) -> Path:
    """A folder in the original layout: anything.safetensors, ae.safetensors, text encoders, tokenizers."""
    _, source = oracle(plain_autoencoder=True)
    return layouts.write_original(source, tmp_path / "checkpoint")


def edit(path: Path, **tensors: torch.Tensor) -> None:
    save_file(load_file(path) | tensors, path)


def load_transformer(checkpoint: Checkpoint) -> None:
    with torch.device("meta"):
        module = Transformer(checkpoint.transformer_config)
    load_into(module, checkpoint.transformer, device=torch.device("cpu"), dtype=torch.float32)


KEY_NORM = "double_blocks.0.img_attn.norm.key_norm.scale"
CLIP_TOKENS = "text_model.embeddings.token_embedding.weight"
CLIP_POSITIONS = "text_model.embeddings.position_embedding.weight"
T5_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
T5_FILE = "text_encoder_2/model.safetensors"


@pytest.mark.parametrize(
    ("file", "name", "shape", "reason"),
    [
        ("anything.safetensors", "img_in.weight", (64,), "2 dimensions"),
        ("anything.safetensors", "img_in.weight", (4, 4, 4), "2 dimensions"),
        ("anything.safetensors", "img_in.weight", (0, 64), "2 dimensions"),
        ("anything.safetensors", KEY_NORM, (2, 2), "1 dimensions"),
        ("anything.safetensors", KEY_NORM, (0,), "1 dimensions"),
        ("anything.safetensors", KEY_NORM, (24,), "RoPE axes"),
        ("anything.safetensors", "txt_in.weight", (3,), "2 dimensions"),
        ("anything.safetensors", "vector_in.in_layer.weight", (), "2 dimensions"),
        ("anything.safetensors", "double_blocks.0.img_mlp.0.weight", (0, 2**60), "2 dimensions"),
        ("anything.safetensors", "double_blocks.99999999.img_mod.lin.weight", (1,), "1 unexpected"),
        ("ae.safetensors", "decoder.conv_in.weight", (17,), "4 dimensions"),
        ("ae.safetensors", "encoder.down.0.block.0.conv1.weight", (17, 3, 3, 3), "32 norm groups"),
        ("ae.safetensors", "decoder.conv_in.weight", (64, 4, 3, 3), "4 latent channels"),
        ("ae.safetensors", "encoder.down.4.block.0.conv1.weight", (64, 64, 3, 3), "5 levels"),
        ("text_encoder/model.safetensors", CLIP_TOKENS, (5,), "2 dimensions"),
        ("text_encoder/model.safetensors", CLIP_TOKENS, (5, 100), "heads are 64 wide"),
        ("text_encoder/model.safetensors", CLIP_POSITIONS, (76, 128), "prompts have 77 tokens"),
        (T5_FILE, T5_BIAS, (5,), "2 dimensions"),
        (T5_FILE, T5_BIAS, (5, 0), "2 dimensions"),
        (T5_FILE, "shared.weight", (256, 32), "T5 text encoder gives 32 features"),
    ],
)
def test_shapes_that_no_model_has_are_refused(
    original: Path, file: str, name: str, shape: tuple[int, ...], reason: str
) -> None:
    for folder in ("text_encoder", "text_encoder_2"):
        (original / folder / "config.json").unlink()
    edit(original / file, **{name: torch.ones(shape)})
    with pytest.raises(CheckpointError, match=reason) as caught:
        load_transformer(open_checkpoint(original))
    assert str(original) in str(caught.value)


def test_files_that_are_not_needed_may_be_of_any_format(original: Path) -> None:
    other = load_file(original / "anything.safetensors") | {"img_in.weight.absmax": torch.ones(3)}
    save_file(other, original / "nf4.safetensors")
    assert open_checkpoint(original / "anything.safetensors").transformer.path.name == "anything.safetensors"
    with pytest.raises(CheckpointError, match="NF4"):
        open_checkpoint(original)
    with pytest.raises(CheckpointError, match="NF4"):
        open_checkpoint(original / "nf4.safetensors")


def test_a_configuration_belongs_to_the_encoder_of_its_kind(original: Path) -> None:
    """All files in one folder, with CLIP's configuration among them."""
    expected = open_checkpoint(original)
    (original / "text_encoder" / "config.json").rename(original / "config.json")
    for folder in ("text_encoder", "text_encoder_2"):
        (original / folder / "model.safetensors").rename(original / f"{folder}.safetensors")
        shutil.rmtree(original / folder)
    checkpoint = open_checkpoint(original)
    assert checkpoint.clip_config.num_attention_heads == expected.clip_config.num_attention_heads
    assert checkpoint.t5_config.num_layers == expected.t5_config.num_layers


def test_a_quantised_text_encoder_is_refused_in_the_original_layout_too(original: Path) -> None:
    path = original / "text_encoder_2" / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "quanto"}})
    )
    with pytest.raises(CheckpointError, match="quantised with 'quanto'"):
        open_checkpoint(original)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["FIFO", "directory"])
def test_an_index_that_is_no_file_is_refused_without_waiting_for_it(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "model.safetensors.index.json")
    with pytest.raises(CheckpointError, match="not a regular file"):
        list(open_bundles(tmp_path, allow_pickle=False))
