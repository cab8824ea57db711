"""What is no adapter of this model is refused, in one sentence that names the file and what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from model.config import TransformerConfig
from model.lora import load_adapter
from model.safetensors_file import CheckpointError
from model.transformer import Transformer
from tests.model import adapter_files as files
from tests.model.adapter_files import State

CONFIG = TransformerConfig(
    hidden_size=64,
    num_heads=2,
    mlp_size=128,
    depth_double=1,
    depth_single=1,
    text_width=32,
    pooled_width=24,
    rope_axes=(4, 14, 14),
)
DOWN, UP = "diffusion_model.img_in.lora_A.weight", "diffusion_model.img_in.lora_B.weight"


@pytest.fixture(scope="module")
def transformer() -> Transformer:
    return Transformer(CONFIG)


def img_in(rank: int = 2) -> State:
    return {DOWN: torch.ones(rank, 64), UP: torch.ones(64, rank)}


def with_value(name: str, value: float) -> State:
    state = img_in()
    state[name][1, 1] = value
    return state


def test_what_it_takes_on_the_device_is_known_and_bounded(transformer: Transformer, tmp_path: Path) -> None:
    path = files.write(tmp_path / "a.safetensors", files.comfyui(files.fused(transformer)))
    adapter = load_adapter(path, transformer, limit_bytes=1 << 30)
    loaded = [change for changes in adapter.changes.values() for change in changes]
    assert adapter.size_bytes == sum(change.down.nbytes + change.up.nbytes for change in loaded)
    with pytest.raises(CheckpointError, match=r"a.safetensors: takes 0 MiB of the device, 0 MiB are left"):
        load_adapter(path, transformer, limit_bytes=adapter.size_bytes - 1)


def test_the_digest_is_that_of_the_file(transformer: Transformer, tmp_path: Path) -> None:
    digests = [
        load_adapter(files.write(tmp_path / "a", state), transformer, limit_bytes=1 << 30).digest
        for state in (img_in(), img_in(), img_in(rank=3))
    ]
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64


def test_matrices_may_be_stored_as_convolutions_and_in_any_floating_point(
    transformer: Transformer, tmp_path: Path
) -> None:
    state = {DOWN: torch.ones(2, 64, 1, 1).half(), UP: torch.ones(64, 2, 1, 1).to(torch.float8_e4m3fn)}
    adapter = load_adapter(files.write(tmp_path / "a", state), transformer, limit_bytes=1 << 30)
    (change,) = adapter.changes[transformer.img_in]
    assert change.down.shape == (2, 64)
    assert change.up.shape == (64, 2)
    assert change.down.dtype == change.up.dtype == torch.float32


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "has no tensors"),
        (
            {**img_in(), "lora_te1_a.alpha": torch.ones(())},
            r"1 key of text encoders \(lora_te1_a.alpha\): only low-rank changes of the linears of the "
            "FLUX.1 transformer are supported",
        ),
        ({**img_in(), "diffusion_model.img_in.dora_scale": torch.ones(64)}, "1 key of DoRA"),
        ({**img_in(), "transformer.transformer_blocks.1.ff.net.2.alpha": torch.ones(())}, "1 unknown"),
        ({**img_in(), "img_in.lora_down.weight": torch.ones(2, 64)}, "each in one key style"),
        (
            {
                **img_in(),
                "x_embedder.lora_A.weight": torch.ones(2, 64),
                "x_embedder.lora_B.weight": torch.ones(64, 2),
            },
            "'x_embedder' and 'img_in' are the same layer|'img_in' and 'x_embedder' are the same layer",
        ),
        ({DOWN: torch.ones(2, 64)}, "of layer 'img_in' it has only down"),
        (
            {**img_in(), DOWN: torch.ones(2, 128)},
            r"\[2, 128\] and .* do not change a layer of 64 inputs and 64",
        ),
        ({**img_in(), DOWN: torch.ones(3, 64)}, r"\[3, 64\] and .*\[64, 2\] do not change"),
        ({**img_in(), DOWN: torch.ones(128)}, r"has shape \[128\], not a matrix"),
        ({**img_in(), DOWN: torch.ones(2, 64, 3, 3)}, r"has shape \[2, 64, 3, 3\], not a matrix"),
        (img_in(rank=513), "has rank 513; allowed are 1 to 512"),
        (img_in(rank=0), "has rank 0; allowed are 1 to 512"),
        (
            {**img_in(), "diffusion_model.img_in.alpha": torch.ones(2)},
            r"alpha' has shape \[2\], not one value",
        ),
        (
            {**img_in(), "diffusion_model.img_in.alpha": torch.tensor(1)},
            "stored as torch.int64, not floating",
        ),
        (with_value(UP, float("nan")), "lora_B.weight' holds values that are not finite"),
        (with_value(DOWN, float("-inf")), "lora_A.weight' holds values that are not finite"),
        (
            {**img_in(), "diffusion_model.img_in.alpha": torch.tensor(torch.inf)},
            "alpha' holds values that are not",
        ),
        (
            {**img_in(), "diffusion_model.img_in.alpha": torch.tensor(3e38)},
            "the alpha of 'img_in' multiplies its change by 1.5e",
        ),
    ],
)
def test_what_is_no_adapter_is_refused(
    transformer: Transformer, tmp_path: Path, state: State, message: str
) -> None:
    path = files.write(tmp_path / "bad.safetensors", state)
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors: .*({message})"):
        load_adapter(path, transformer, limit_bytes=1 << 30)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("{", "is not what PEFT writes"),
        ("[1]", "is not what PEFT writes"),
        ('{"lora_alpha": "many"}', "is not what PEFT writes"),
        ('{"alpha_pattern": 3}', "is not what PEFT writes"),
        (f'{{"lora_alpha": 1{400 * "0"}}}', "is not what PEFT writes"),
        (
            '{"lora_alpha": NaN}',
            "the alpha of 'img_in' multiplies its change by nan; allowed: at most 1e\\+06",
        ),
        ('{"alpha_pattern": {"img_in": -1e300}}', "multiplies its change by -5e"),
        (json.dumps({"transformer.use_dora": True}), "was trained with DoRA"),
    ],
)
def test_a_configuration_that_cannot_be_followed_is_refused(
    transformer: Transformer, tmp_path: Path, metadata: str, message: str
) -> None:
    save_file(img_in(), tmp_path / "bad.safetensors", metadata={"lora_adapter_metadata": metadata})
    with pytest.raises(CheckpointError, match=rf"bad\.safetensors: .*{message}"):
        load_adapter(tmp_path / "bad.safetensors", transformer, limit_bytes=1 << 30)


def cut_short(data: bytes) -> bytes:
    return data[:-1]


def no_file_at_all(data: bytes) -> bytes:
    return b"PK\x03\x04"


@pytest.mark.parametrize("damage", [cut_short, no_file_at_all], ids=lambda damage: damage.__name__)
def test_a_damaged_file_is_refused(
    transformer: Transformer, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = files.write(tmp_path / "bad.safetensors", img_in())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: "):
        load_adapter(path, transformer, limit_bytes=1 << 30)
