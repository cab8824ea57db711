"""Every published layout and dtype loads to the same model, and nothing else is taken for one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import CheckpointError, open_checkpoint
from model.conditioning import Prompt
from model.config import AutoencoderConfig
from model.layout import Numerics
from model.pipeline import Pipeline, Pixels
from model.transformer import Transformer
from tests.model import layouts
from tests.model.conftest import Oracle

CPU = torch.device("cpu")


def load(path: Path, dtype: torch.dtype = torch.float32, *, allow_pickle: bool = False) -> Pipeline:
    return Pipeline.load(path, device=CPU, dtype=dtype, numerics=Numerics.EXACT, allow_pickle=allow_pickle)


def picture(pipeline: Pipeline) -> Pixels:
    (pixels,) = pipeline.generate(
        ["a red circle"], seeds=[1], width=256, height=256, steps=2, max_sequence_length=64
    )
    return pixels


@pytest.fixture(scope="session")
def source(oracle: Oracle) -> Path:
    """A diffusers folder whose autoencoder can be told from its shapes."""
    _, folder = oracle(plain_autoencoder=True)
    return folder


@pytest.fixture(scope="session")
def expected(source: Path) -> Pixels:
    return picture(load(source))


EXACT_LAYOUTS: dict[str, Callable[[Path, Path], Path]] = {
    "diffusers, sharded": layouts.write_sharded,
    "original": layouts.write_original,
    "original, prefixed": lambda source, folder: layouts.write_original(
        source, folder, layouts.prefixed("model.diffusion_model.")
    ),
    "original, newer norm names": lambda source, folder: layouts.write_original(
        source, folder, layouts.newer_norm_names
    ),
    "original, one file named": lambda source, folder: (
        layouts.write_original(source, folder) / "anything.safetensors"
    ),
    "all in one": layouts.write_all_in_one,
    "diffusers transformer as one file": lambda source, folder: layouts.write_original(
        source,
        folder,
        lambda state: load_file(source / "transformer" / "diffusion_pytorch_model.safetensors"),
    ),
}


@pytest.mark.parametrize("layout", EXACT_LAYOUTS)
def test_every_layout_gives_the_same_picture(
    source: Path, expected: Pixels, tmp_path: Path, layout: str
) -> None:
    pipeline = load(EXACT_LAYOUTS[layout](source, tmp_path / "checkpoint"))
    assert np.array_equal(picture(pipeline), expected)


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        (layouts.cast(torch.float16), 2e-3),
        (layouts.cast(torch.bfloat16), 1e-2),
        (layouts.mixed, 1e-2),
        (layouts.cast(torch.float8_e4m3fn), 1e-1),
        (layouts.cast(torch.float8_e5m2), 2e-1),
        (layouts.scaled_fp8("scale_weight"), 1e-1),
        (layouts.scaled_fp8("weight_scale"), 1e-1),
    ],
    ids=["float16", "bfloat16", "mixed", "fp8 e4m3", "fp8 e5m2", "scaled fp8, older", "scaled fp8, newer"],
)
def test_every_dtype_loads_to_the_stored_values(
    source: Path, tmp_path: Path, change: Callable[[layouts.State], layouts.State], tolerance: float
) -> None:
    """The tolerance is a little over the rounding of the dtype: half a unit in its last place."""
    whole = layouts.original_transformer_state(source)
    pipeline = load(layouts.write_original(source, tmp_path / "checkpoint", change))
    for name, tensor in pipeline.transformer.state_dict().items():
        assert tensor.dtype == torch.float32
        assert (tensor - whole[name]).norm() <= tolerance * whole[name].norm(), name


def test_scales_are_applied_exactly(source: Path, tmp_path: Path) -> None:
    folder = layouts.write_original(source, tmp_path / "checkpoint", layouts.scaled_fp8("scale_weight"))
    stored = load_file(folder / "anything.safetensors")
    name = "double_blocks.0.img_mlp.0"
    scaled = stored[f"{name}.weight"].float() * stored[f"{name}.scale_weight"]
    loaded = load(folder).transformer.state_dict()[f"{name}.weight"]
    assert torch.equal(loaded, scaled)


def test_a_variant_is_taken_where_there_is_no_plain_file(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(source, folder)
    plain = folder / "vae" / "diffusion_pytorch_model.safetensors"
    plain.rename(plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    load(folder)
    shutil.copy(source / "vae" / plain.name, plain)
    assert open_checkpoint(folder).autoencoder.path == plain


def test_the_digest_is_of_the_weights_however_they_are_sharded(source: Path, tmp_path: Path) -> None:
    sharded = layouts.write_sharded(source, tmp_path / "sharded")
    assert load(source).info.digest == load(sharded).info.digest
    other = layouts.write_original(
        source, tmp_path / "other", lambda state: state | {"img_in.bias": -state["img_in.bias"]}
    )
    same = layouts.write_original(source, tmp_path / "same")
    assert load(other).info.digest != load(same).info.digest


def test_target_dtypes(source: Path) -> None:
    half = load(source, torch.float16)
    assert half.transformer.img_in.weight.dtype == torch.float16
    assert half.t5.model.shared.weight.dtype == torch.bfloat16, "T5 overflows in float16"
    assert load(source, torch.bfloat16).autoencoder.decoder.conv_in.weight.dtype == torch.bfloat16


def test_a_step_in_float16_is_close_to_one_in_float32(source: Path) -> None:
    latents = []
    for dtype in (torch.float32, torch.float16):
        pipeline = load(source, dtype)
        (conditioning,) = pipeline.encode([Prompt("a red circle", 64)])
        sample = pipeline.start(
            conditioning=conditioning, negative=None, width=256, height=256, steps=1, seed=0, guidance_scale=0
        )
        pipeline.denoise_step([sample])
        latents.append(sample.latents)
    assert (latents[1] - latents[0]).norm() < 0.02 * latents[0].norm()


def test_tied_embeddings_stay_one_tensor(source: Path) -> None:
    model = load(source).t5.model
    assert model.shared.weight is model.encoder.embed_tokens.weight


def test_sizes_of_a_bare_file_come_from_its_shapes(source: Path, tmp_path: Path) -> None:
    bare = open_checkpoint(layouts.write_original(source, tmp_path / "checkpoint"))
    described = open_checkpoint(source)
    assert bare.transformer_config == described.transformer_config
    assert bare.autoencoder_config == AutoencoderConfig(channels=(32, 32, 64, 64))


def test_bare_text_encoders_give_their_sizes_too(source: Path, tmp_path: Path) -> None:
    folder = layouts.write_original(source, tmp_path / "checkpoint")
    for name in ("text_encoder", "text_encoder_2"):
        (folder / name / "model.safetensors").rename(folder / f"{name}.safetensors")
        shutil.rmtree(folder / name)
    bare, described = open_checkpoint(folder), open_checkpoint(source)
    for key in ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "is_gated_act"):
        assert getattr(bare.t5_config, key) == getattr(described.t5_config, key)
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        assert getattr(bare.clip_config, key) == getattr(described.clip_config, key)


def test_tokenizers_in_their_published_files_are_read(
    source: Path, expected: Pixels, tokenizers: Path, tmp_path: Path
) -> None:
    """vocab.json with merges.txt, and spiece.model: what the original layout's text encoders come with."""
    folder = layouts.write_original(source, tmp_path / "checkpoint")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.rmtree(folder / name)
    shutil.copytree(tokenizers / "tokenizer", folder / "clip")
    shutil.copytree(tokenizers / "tokenizer_2", folder / "t5")
    assert not list(folder.rglob("tokenizer.json"))
    assert np.array_equal(picture(load(folder)), expected)


def test_dev_weights_are_told_by_their_guidance(oracle: Oracle, tmp_path: Path) -> None:
    _, folder = oracle(dev=True, plain_autoencoder=True)
    checkpoint = open_checkpoint(layouts.write_original(folder, tmp_path / "checkpoint"))
    assert checkpoint.transformer_config.guidance_embed
    assert checkpoint.schedule.use_dynamic_shifting


def test_pickles_load_when_allowed(source: Path, expected: Pixels, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(source, folder)
    plain = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(plain), folder / "transformer" / "diffusion_pytorch_model.bin")
    plain.unlink()
    with pytest.raises(CheckpointError, match="pickle file, which can run code"):
        open_checkpoint(folder)
    assert np.array_equal(picture(load(folder, allow_pickle=True)), expected)


def test_a_file_that_is_cut_after_it_was_opened_is_an_error_and_not_a_signal(
    source: Path, tmp_path: Path
) -> None:
    from model.checkpoint import load_into

    folder = tmp_path / "checkpoint"
    shutil.copytree(source, folder)
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "transformer" / "diffusion_pytorch_model.safetensors", 100_000)
    with torch.device("meta"):
        module = Transformer(checkpoint.transformer_config)
    with pytest.raises(CheckpointError, match="changed while"):
        load_into(module, checkpoint.transformer, device=CPU, dtype=torch.float32)


PEAK = """
import sys, torch
from pathlib import Path
from torch import nn
from model.bundle import open_bundle
from model.checkpoint import load_into
from model.loading import Component
from model.names import as_named
def peak_kb():
    with open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("VmHWM")).split()[1])
dtype = getattr(torch, sys.argv[2])
bundle = open_bundle(Path(sys.argv[1]), allow_pickle=False)
component = Component("weights", bundle.path, bundle.tensors, as_named)
with torch.device("meta"):
    module = nn.Sequential(*(nn.Linear(4096, 1024, bias=False) for _ in bundle.tensors))
warm = torch.ones(8, dtype=dtype).isfinite().all()
before = peak_kb()
load_into(module, component, device=torch.device("cpu"), dtype=dtype)
peak = peak_kb() - before
model_kb = sum(p.nbytes for p in module.parameters()) / 1024
print(peak / model_kb)
"""


@pytest.mark.parametrize(
    ("stored", "target"), [("float32", "float32"), ("bfloat16", "float32"), ("bfloat16", "bfloat16")]
)
def test_loading_needs_at_most_a_seventh_more_than_the_model(
    tmp_path: Path, stored: str, target: str
) -> None:
    """256 MiB of weights: the peak above the interpreter is at most 1.15 times the loaded model."""
    dtype = getattr(torch, stored)
    layers = (256 << 20) // (1024 * 4096 * getattr(torch, target).itemsize)
    state = {f"{i}.weight": torch.full((1024, 4096), i + 1, dtype=dtype) for i in range(layers)}
    save_file(state, tmp_path / "weights.safetensors")
    del state
    measured = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "weights.safetensors"), target],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.9 < float(measured.stdout) <= 1.15


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("transformer/config.json", {"num_layers": "two"}, "num_layers is 'two'"),
        ("transformer/config.json", {"num_layers": True}, "num_layers is True"),
        ("transformer/config.json", {"num_layers": -1}, "num_layers is -1"),
        ("transformer/config.json", {"axes_dims_rope": [4, 14, 13]}, "axes_dims_rope"),
        ("transformer/config.json", {"in_channels": 384}, "Fill, Depth, Canny"),
        ("transformer/config.json", {"num_layers": 3}, "missing"),
        ("transformer/config.json", {"num_layers": 1}, "unexpected"),
        ("transformer/config.json", {"num_attention_heads": 8}, "wrongly shaped"),
        ("transformer/config.json", {"joint_attention_dim": 32}, "T5 text encoder gives 64 features"),
        ("transformer/config.json", {"pooled_projection_dim": 32}, "CLIP text encoder gives 128 features"),
        ("vae/config.json", {"block_out_channels": [32, 64]}, "2 levels"),
        ("vae/config.json", {"norm_num_groups": 7}, "7 norm groups"),
        ("vae/config.json", {"latent_channels": 4}, "4 latent channels"),
        ("transformer/config.json", {"quantization_config": {"quant_method": "torchao"}}, "torchao"),
        ("vae/config.json", {"block_out_channels": "16"}, "block_out_channels"),
        ("vae/config.json", {"scaling_factor": None}, "scaling_factor is None"),
        ("scheduler/scheduler_config.json", {"shift": "big"}, "shift is 'big'"),
        ("text_encoder/config.json", {"hidden_size": "wide"}, "text_encoder/config.json: .*hidden_size"),
        ("text_encoder_2/config.json", {"d_model": [1]}, "text_encoder_2/config.json: .*d_model"),
        ("text_encoder_2/config.json", {"num_layers": 5}, "missing"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(
    source: Path, tmp_path: Path, file: str, changes: dict[str, object], message: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(source, folder)
    edit_json(folder / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "name",
    ["transformer", "vae", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler/scheduler_config.json"],
)
def test_what_is_missing_from_a_folder_is_named(source: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(source, folder)
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CheckpointError, match=name):
        load(folder)


def test_one_error_lists_everything_that_does_not_fit(source: Path, tmp_path: Path) -> None:
    def broken(state: layouts.State) -> layouts.State:
        changed = {
            name: tensor for name, tensor in state.items() if "img_mlp" not in name or ".0.img_mlp.0." in name
        }
        changed["img_in.bias"] = torch.zeros(7)
        return changed | {f"extra.{i}": torch.zeros(1) for i in range(30)}

    folder = layouts.write_original(source, tmp_path / "checkpoint", broken)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    message = str(caught.value)
    assert "6 missing: double_blocks.0.img_mlp.2.weight" in message
    assert "30 unexpected: extra.0" in message
    assert "and 10 more" in message
    assert "1 wrongly shaped: img_in.bias [7] for [128]" in message


def test_two_files_of_one_kind_are_ambiguous(source: Path, tmp_path: Path) -> None:
    folder = layouts.write_original(source, tmp_path / "checkpoint")
    shutil.copy(folder / "anything.safetensors", folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"both anything.safetensors and other.safetensors"):
        open_checkpoint(folder)
    assert open_checkpoint(folder / "other.safetensors").name == "other"
