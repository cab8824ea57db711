"""From nothing to a checkpoint, in a few steps of everything, with the code that makes the embedded one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline

from model.layout import Layout, Numerics, Shape
from model.pipeline import Pipeline
from model.training import autoencoder, towers
from model.training.__main__ import train
from model.training.flow import CONFIG, choose, new_transformer
from model.training.pictures import Pictures
from model.training.recipe import Recipe
from model.training.run import Draws
from model.verify import verify

FEW = Recipe(
    tokenizer_prompts=3000,
    tower_steps=2,
    autoencoder_steps=2,
    autoencoder_pictures=2,
    flow_steps=2,
    pictures_at_start=8,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of the runs and the checkpoint."""
    work = tmp_path_factory.mktemp("training")
    train(work, work / "checkpoint", FEW)
    return work, work / "checkpoint"


def load(folder: Path) -> Pipeline:
    return Pipeline.load(folder, device=torch.device("cpu"), dtype=torch.float32, numerics=Numerics.EXACT)


def test_what_is_trained_is_a_whole_checkpoint_that_anyone_can_load(trained: tuple[Path, Path]) -> None:
    _, checkpoint = trained
    verify(checkpoint)
    size = sum(path.stat().st_size for path in checkpoint.rglob("*"))
    assert size <= 16_000_000
    oracle = FluxPipeline.from_pretrained(checkpoint, dtype=torch.float32)
    oracle.set_progress_bar_config(disable=True)
    theirs = oracle(
        "a red circle",
        width=256,
        height=256,
        num_inference_steps=1,
        max_sequence_length=128,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    pipeline = load(checkpoint)
    (ours,) = pipeline.generate(
        ["a red circle"],
        seeds=[0],
        width=256,
        height=256,
        steps=1,
        max_sequence_length=pipeline.info.default_sequence_length,
    )
    assert np.abs((theirs * 255).round() - ours).max() <= 1


def test_the_checkpoint_states_its_size_and_its_text_length(trained: tuple[Path, Path]) -> None:
    info = load(trained[1]).info
    assert (info.default_width, info.default_height) == (256, 256)
    assert (info.default_sequence_length, info.default_steps) == (128, 4)


def test_a_second_call_finds_everything_done(trained: tuple[Path, Path], tmp_path: Path) -> None:
    work, checkpoint = trained
    train(work, tmp_path / "again", FEW)
    for file in sorted(checkpoint.rglob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "again" / file.relative_to(checkpoint)).read_bytes()


def test_a_run_that_starts_from_a_checkpoint_trains_only_its_transformer(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    _, checkpoint = trained
    train(tmp_path / "work", tmp_path / "further", replace(FEW, first_picture=100), start=checkpoint)
    verify(tmp_path / "further")
    same = {
        path.parent.name: path.read_bytes()
        == (tmp_path / "further" / path.relative_to(checkpoint)).read_bytes()
        for path in checkpoint.rglob("*.safetensors")
    }
    assert same == {"transformer": False, "vae": True, "text_encoder": True, "text_encoder_2": True}


def test_any_text_has_tokens(trained: tuple[Path, Path]) -> None:
    pipeline = load(trained[1])
    for text in ("", "ein roter Kreis", "赤い円 🚀", "a" * 3000, "\u0000\ufffd"):
        (picture,) = pipeline.generate(
            [text], seeds=[0], width=256, height=256, steps=1, max_sequence_length=128
        )
        assert picture.shape == (256, 256, 3)


def test_a_selection_has_the_first_token_a_window_and_stands_for_all() -> None:
    for step in range(20):
        chosen, stands_for = choose(16, 24, 64, Draws.of(step, 0))
        assert chosen[0] == 0
        assert len(set(chosen.tolist())) == 64
        assert chosen.max() < 16 * 24
        assert float(stands_for.exp().sum()) == pytest.approx(16 * 24)
        window = chosen[1:][stands_for[1:] == 0]
        assert len(window) in (35, 36)  # 35 where the first token lies in it


def test_a_small_picture_is_selected_whole() -> None:
    chosen, stands_for = choose(16, 16, 256, Draws.of(0, 0))
    assert sorted(chosen.tolist()) == list(range(256))
    assert not stands_for.any()


def test_a_grid_that_is_too_small_has_no_selection() -> None:
    with pytest.raises(ValueError, match="6 x 6 tokens"):
        choose(6, 6, 64, Draws.of(0, 0))


@pytest.mark.parametrize("side", [16, 32, 64])
def test_the_text_begins_by_looking_at_the_first_token(side: int) -> None:
    """Half of one head's attention: the token that decides the whole picture must not drown in the others."""
    torch.manual_seed(0)
    block = new_transformer().double_blocks[0]
    layout = Layout.build(
        [Shape(128, side, side)], config=CONFIG, numerics=Numerics.FAST, device=torch.device("cpu")
    )
    with torch.no_grad():
        x = torch.randn(128 + side * side, CONFIG.hidden_size)
        both = ((block.txt_attn.qkv, layout.txt), (block.img_attn.qkv, layout.img))
        qkv = block.project(both, x)
        for attn, stream in ((block.txt_attn, layout.txt), (block.img_attn, layout.img)):
            block.norm_and_turn(attn.norm, stream.span.of(qkv), stream)
        q, k, _ = block.img_attn.norm.heads(qkv)
    query, keys = q[5, 0], k[:, 0]
    weights = torch.softmax(keys @ query * CONFIG.head_dim**-0.5, dim=0)
    assert weights[128] > 0.4
    assert weights.argmax() == 128


def test_blocks_begin_as_the_identity() -> None:
    transformer = new_transformer()
    for name in ("double_blocks.0.img_mod.lin.weight", "final_layer.linear.weight"):
        assert not transformer.state_dict()[name].any()
    assert transformer.config == CONFIG


def test_the_pictures_are_the_same_however_they_were_made(trained: tuple[Path, Path], tmp_path: Path) -> None:
    work, _ = trained
    pictures = Pictures(tmp_path, autoencoder.train(work, FEW), towers.train(work, FEW))
    one, same, other = pictures.example(5), pictures.example(5), pictures.example(6)
    assert torch.equal(one.latents, same.latents)
    assert torch.equal(one.states, same.states)
    assert one.latents.shape != other.latents.shape or not torch.equal(one.latents, other.latents)
    assert one.latents.shape == (int(one.size.prod()), 64)
    assert 0 < one.interest.mean() < 1
