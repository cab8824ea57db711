"""Loading holds against files that change, tells its progress in order, and finds what tools write."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from transformers import T5EncoderModel

from model.checkpoint import Checkpoint, CheckpointError, load_into, open_checkpoint
from model.layout import Numerics
from model.pipeline import Pipeline
from model.transformer import Transformer
from tests.model import layouts
from tests.model.conftest import Oracle

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def source(oracle: Oracle) -> Path:
    """A diffusers folder whose autoencoder can be told from its shapes."""
    _, folder = oracle(plain_autoencoder=True)
    return folder


def load(path: Path) -> Pipeline:
    return Pipeline.load(path, device=CPU, dtype=torch.float32, numerics=Numerics.EXACT)


@pytest.mark.parametrize("change", ["cut", "overwritten", "replaced"])
def test_a_file_that_changes_while_it_is_loaded_is_an_error_and_not_a_signal(
    source: Path, tmp_path: Path, change: str
) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(source, folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    checkpoint = open_checkpoint(folder)
    if change == "replaced":
        shutil.copy(path, folder / "other")
        (folder / "other").rename(path)

    def disturb(count: int) -> None:
        if change == "cut":
            os.truncate(path, 10_000)
        elif change == "overwritten":
            with path.open("r+b") as file:
                file.write(b"\0" * 8)

    with pytest.raises(CheckpointError, match=r"changed while|ends at byte \d+, inside tensor"):
        fill_transformer(checkpoint, disturb)


def test_progress_is_told_by_one_thread_at_a_time_up_to_every_byte(source: Path) -> None:
    checkpoint = open_checkpoint(source)
    lock, seen = threading.Lock(), []

    def advance(count: int) -> None:
        assert lock.acquire(blocking=False), "called by two threads at once"
        time.sleep(0.001)  # long enough for another thread to come
        seen.append(count)
        lock.release()

    fill_transformer(checkpoint, advance)
    assert sum(seen) == checkpoint.transformer.size_bytes


def test_positions_that_no_file_holds_are_counted_up(source: Path) -> None:
    positions = load(source).clip.model.embeddings.position_ids
    assert torch.equal(positions, torch.arange(77).unsqueeze(0))


def test_sharded_variants_are_found(source: Path, tmp_path: Path) -> None:
    """Written by diffusers and transformers themselves, which put the variant into the index's name."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(source, folder)
    for kind, name in ((FluxTransformer2DModel, "transformer"), (T5EncoderModel, "text_encoder_2")):
        model = kind.from_pretrained(source / name)
        shutil.rmtree(folder / name)
        model.save_pretrained(folder / name, variant="fp16", max_shard_size="100KB")
        (index,) = (folder / name).glob("*.index.fp16.json")
        assert len(set(json.loads(index.read_text())["weight_map"].values())) > 1
    assert load(folder).info.digest == load(source).info.digest
    plain = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    shutil.copy(source / "transformer" / plain.name, plain)
    assert open_checkpoint(folder).transformer.path == plain


def test_a_linked_file_keeps_its_own_name(source: Path, tmp_path: Path) -> None:
    folder = layouts.write_original(source, tmp_path / "checkpoint")
    (folder / "anything.safetensors").rename(tmp_path / "0123abcd")
    (folder / "flux1-schnell.safetensors").symlink_to(tmp_path / "0123abcd")
    assert open_checkpoint(folder / "flux1-schnell.safetensors").name == "flux1-schnell"


def test_a_schedule_beside_original_files_is_used(oracle: Oracle, source: Path, tmp_path: Path) -> None:
    _, dev = oracle(dev=True, plain_autoencoder=True)
    folder = layouts.write_original(source, tmp_path / "checkpoint")
    assert not open_checkpoint(folder).schedule.use_dynamic_shifting
    shutil.copytree(dev / "scheduler", folder / "scheduler")
    assert open_checkpoint(folder).schedule == open_checkpoint(dev).schedule


def test_a_path_that_cannot_be_is_refused() -> None:
    with pytest.raises(CheckpointError, match="too long"):
        open_checkpoint(Path("/") / ("x" * 300))


def fill_transformer(checkpoint: Checkpoint, progress: Callable[[int], None] | None = None) -> None:
    with torch.device("meta"):
        module = Transformer(checkpoint.transformer_config)
    load_into(module, checkpoint.transformer, device=CPU, dtype=torch.float32, progress=progress)
    assert not any(tensor.is_meta for tensor in module.state_dict().values())
