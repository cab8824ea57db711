"""Pickles: refused unless asked for, and then tensors only."""

import contextlib
import io
import os
import pickle  # noqa: TID251 - the attack that is refused
import random
from pathlib import Path

import pytest
import torch

from model.bundle import open_tensor_file
from model.checkpoint import CheckpointError
from model.pickled import PickledFile


class Canary:
    """Unpickled by a careless loader it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_pickle_never_runs_code(tmp_path: Path, allow_pickle: bool, zipped: bool, suffix: str) -> None:
    path, canary = tmp_path / f"weights{suffix}", tmp_path / "touched"
    content = {"weight": torch.ones(2), "canary": Canary(canary)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="pickle"):
        open_tensor_file(path, allow_pickle=allow_pickle)
    assert not canary.exists()


def test_tensors_of_a_pickle_are_read_when_allowed(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    torch.save({"state_dict": {"weight": torch.arange(6.0)}}, path)
    file = open_tensor_file(path, allow_pickle=True)
    buffer = bytearray(8)
    with file.reading() as reader:
        reader.read_into(file.tensors["weight"], 4, memoryview(buffer))
    assert torch.frombuffer(buffer, dtype=torch.float32).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(2, device="meta"),
        torch.ones(1).expand(2**45),
    ],
    ids=["sparse", "complex", "meta", "one value claimed 2^45 times"],
)
def test_tensors_that_are_not_plain_are_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    path = tmp_path / "weights.bin"
    torch.save({"weight": tensor}, path)
    with pytest.raises(CheckpointError, match="'weight' is not the plain tensor"):
        open_tensor_file(path, allow_pickle=True)


@pytest.mark.parametrize("zipped", [False, True])
def test_no_damaged_pickle_raises_anything_else(tmp_path: Path, zipped: bool) -> None:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(3, 4)}, buffer, _use_new_zipfile_serialization=zipped)
    path, draw = tmp_path / "weights.bin", random.Random(0)
    for _ in range(300):
        damaged = bytearray(buffer.getvalue())
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(CheckpointError):
            PickledFile.open(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"a": {"b": torch.ones(1)}}], ids=str)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.bin"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
        open_tensor_file(path, allow_pickle=True)
