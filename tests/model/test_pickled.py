"""Pickles: refused unless asked for, and then tensors only."""

import os
import pickle  # noqa: TID251 - the attack that is refused
from pathlib import Path

import pytest
import torch

from model.bundle import open_tensor_file
from model.checkpoint import CheckpointError


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


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"a": {"b": torch.ones(1)}}], ids=str)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.bin"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="not a dictionary of tensors"):
        open_tensor_file(path, allow_pickle=True)
