"""The tensor files that belong together, whatever their container: one file, or the shards of one index.

A container is recognised by its first bytes. What is recognised and not served is refused here, with what
to use instead; which model the tensors make up is the business of model/recognition.py.
"""

import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.pickled import PickledFile
from model.safetensors_file import (
    CheckpointError,
    SafetensorsFile,
    StoredTensor,
    TensorFile,
    open_regular,
    read_at,
)

SAFETENSORS_SUFFIXES = (".safetensors", ".sft")
OTHER_SUFFIXES = (".gguf", ".bin", ".pt", ".pth", ".ckpt")
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80")
MAX_JSON_BYTES = 32 << 20  # the largest published one, T5's tokenizer.json, has 2.4 MB
INDEX = re.compile(r".+\.safetensors\.index(\.\w+)?\.json")  # with the variant, if any: ...index.fp16.json

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor and the file that holds it."""

    file: TensorFile
    tensor: StoredTensor


@dataclass(frozen=True, slots=True)
class Bundle:
    """All tensors of one file or of all shards of one index, by their stored names."""

    path: Path
    tensors: dict[str, Located]


def open_bundles(folder: Path, *, allow_pickle: bool) -> Iterator[Bundle]:
    """Open what a folder holds: indexed shards as one bundle each, then every file that no index names.

    Files of other containers are opened only where there is no safetensors file, so that a folder of
    nothing else says why it cannot be served.
    """
    entries = sorted(folder.iterdir())
    sharded: set[str] = set()
    for index in (path for path in entries if INDEX.fullmatch(path.name)):
        names = read_index(index)
        sharded |= set(names.values())
        yield _open_shards(index, names, allow_pickle=allow_pickle)
    files = [path for path in entries if path.suffix in SAFETENSORS_SUFFIXES]
    if not files:
        files = [path for path in entries if path.suffix in OTHER_SUFFIXES]
    for path in files:
        if path.name not in sharded:
            yield open_bundle(path, allow_pickle=allow_pickle)


def open_bundle(path: Path, *, allow_pickle: bool) -> Bundle:
    """Open one file as a bundle of its own; raises `CheckpointError`."""
    file = open_tensor_file(path, allow_pickle=allow_pickle)
    return Bundle(path, {name: Located(file, tensor) for name, tensor in file.tensors.items()})


def open_tensor_file(path: Path, *, allow_pickle: bool) -> TensorFile:
    """Check and open a file by its first bytes, never by its name."""
    magic = _first_bytes(path)
    if magic.startswith(b"GGUF"):
        raise CheckpointError(
            f"{path}: GGUF files are not supported; use the safetensors files of the same model "
            "(bf16, fp16 or fp8)"
        )
    if magic.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: this is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
        )
    if magic.startswith(PICKLE_MAGIC) and magic[8:9] != b"{":  # a header of 128 bytes begins with \x80 too
        if not allow_pickle:
            raise CheckpointError(
                f"{path}: this is a pickle file, which can run code when it is loaded; use a safetensors "
                "file, or --allow-pickle to load its tensors only"
            )
        log.warning("loading pickle file %s, tensors only", path)
        return PickledFile.open(path)
    return SafetensorsFile.open(path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of at most 32 MB from a regular file; raises `CheckpointError`."""
    with open_regular(path) as fd:
        data = read_at(path, fd, position=0, length=MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: has more than {MAX_JSON_BYTES} bytes, too many for a configuration")
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return content


def read_index(path: Path) -> dict[str, str]:
    """Return the file of every tensor that a `*.index.json` lists."""
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise CheckpointError(f"{path}: weight_map is not an object of file names")
    for file in names.values():
        if Path(file).name != file:
            raise CheckpointError(f"{path}: weight_map names {file!r}, which is not a file of this folder")
    return names


def _open_shards(index: Path, names: dict[str, str], *, allow_pickle: bool) -> Bundle:
    shards = {}
    for file in sorted(set(names.values())):
        if not (index.parent / file).exists():
            raise CheckpointError(f"{index}: lists {file}, which is missing")
        shards[file] = open_tensor_file(index.parent / file, allow_pickle=allow_pickle)
    located: dict[str, Located] = {}
    for file, shard in shards.items():
        for name, tensor in shard.tensors.items():
            if names.get(name) != file:
                raise CheckpointError(f"{shard.path}: holds tensor {name!r}, which {index.name} does not say")
            located[name] = Located(shard, tensor)
    if absent := sorted(set(names) - set(located)):
        raise CheckpointError(f"{index}: lists tensor {absent[0]!r} in {names[absent[0]]}, which lacks it")
    return Bundle(index, located)


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        kind = (
            "is a directory" if path.is_dir() else "is not a regular file" if path.exists() else "is missing"
        )
        raise CheckpointError(f"{path}: {kind}")
    try:
        with path.open("rb") as file:
            return file.read(32)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from None
