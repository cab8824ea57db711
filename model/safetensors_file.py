"""A safetensors file with its header checked before anything of it is believed, read by position.

Stricter than the library: holes, overlaps, trailing bytes, duplicate names and huge headers are refused with
the byte offset. Data is read with positioned reads and never mapped, so that a file which is truncated
meanwhile is an error and not a signal. What the tensors mean is not known here.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch

MAX_HEADER_BYTES = 32 << 20  # the largest published FLUX file needs 0.2 MB
MAX_TENSORS = 100_000
MAX_NAME = 1000  # characters
LENGTH_BYTES = 8
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, ambiguous or of a kind that is not served."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor lies in its file; `start` is the absolute byte offset."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size_bytes: int


class Reader(Protocol):
    def read_into(self, tensor: StoredTensor, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of `tensor` from `offset` on."""


class TensorFile(Protocol):
    """A file of named tensors, whatever its format."""

    @property
    def path(self) -> Path: ...
    @property
    def tensors(self) -> dict[str, StoredTensor]: ...
    @property
    def metadata(self) -> dict[str, str]: ...
    def reading(self) -> AbstractContextManager[Reader]: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What must not change between checking a header and reading the data."""

    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Self:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """A checked header. `metadata` are the strings under `__metadata__`."""

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    identity: Identity

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read and check the header of `path`; raises `CheckpointError` with reason and byte offset."""
        with open_regular(path) as fd:
            identity = Identity.of(os.fstat(fd))
            header = _read_header(path, fd, identity.size_bytes)
        entries = _parse_header(path, header)
        metadata = _checked_metadata(path, entries.pop("__metadata__", {}))
        data_start = LENGTH_BYTES + len(header)
        tensors = _checked_tensors(path, entries, data_start=data_start, file_bytes=identity.size_bytes)
        return cls(path=path, tensors=tensors, metadata=metadata, identity=identity)

    @contextmanager
    def reading(self) -> Iterator[Reader]:
        """Open the file for its data; raises `CheckpointError` if it changed since its header was checked."""
        with open_regular(self.path) as fd:
            self._same_file(fd)
            yield FileReader(self.path, fd)
            self._same_file(fd)

    def _same_file(self, fd: int) -> None:
        if Identity.of(os.fstat(fd)) != self.identity:
            raise CheckpointError(f"{self.path}: the file changed while it was being loaded")


@dataclass(frozen=True, slots=True)
class FileReader:
    """Reads tensors of an open file by position."""

    path: Path
    fd: int

    def read_into(self, tensor: StoredTensor, offset: int, buffer: memoryview) -> None:
        position, filled = tensor.start + offset, 0
        while filled < len(buffer):
            try:
                count = os.preadv(self.fd, [buffer[filled:]], position + filled)
            except OSError as error:
                raise CheckpointError(
                    f"{self.path}: cannot be read at byte {position + filled}: {error.strerror}"
                ) from None
            if count == 0:
                raise CheckpointError(
                    f"{self.path}: ends at byte {position + filled}, inside tensor {tensor.name!r}"
                )
            filled += count


@contextmanager
def open_regular(path: Path) -> Iterator[int]:
    """Open a regular file without ever blocking on a FIFO or reading a device."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CheckpointError(f"{path}: is not a regular file")
        yield fd
    finally:
        os.close(fd)


def read_at(path: Path, fd: int, *, position: int, length: int) -> bytes:
    """Read up to `length` bytes, fewer only where the file ends; raises `CheckpointError`."""
    try:
        return os.pread(fd, length, position)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read at byte {position}: {error.strerror}") from None


def is_plain_name(name: str) -> bool:
    """Whether a tensor name can be put into messages and digests: printable, and not endless."""
    return len(name) <= MAX_NAME and name.isprintable()


def _read_header(path: Path, fd: int, file_bytes: int) -> bytes:
    if file_bytes < LENGTH_BYTES:
        raise CheckpointError(f"{path}: has {file_bytes} bytes, a safetensors file has at least 8")
    length = int.from_bytes(read_at(path, fd, position=0, length=LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path}: states a header of {length} bytes at byte 0, over the limit of {MAX_HEADER_BYTES}; "
            "this is not a safetensors file"
        )
    if LENGTH_BYTES + length > file_bytes:
        raise CheckpointError(
            f"{path}: states a header of {length} bytes at byte 0, but the file ends at byte {file_bytes}"
        )
    header = read_at(path, fd, position=LENGTH_BYTES, length=length)
    if len(header) < length:
        raise CheckpointError(f"{path}: ends at byte {LENGTH_BYTES + len(header)}, inside its header")
    if not header.startswith(b"{"):
        raise CheckpointError(f"{path}: the header at byte 8 does not begin with '{{'")
    return header


def _parse_header(path: Path, header: bytes) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise CheckpointError(f"{path}: the header has the key {name[:200]!r} twice")
            found[name] = value
        return found

    try:
        text = header.decode("utf-8")
        entries = json.loads(text, object_pairs_hook=without_duplicates)
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: the header is not UTF-8 at byte {LENGTH_BYTES + error.start}"
        ) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path}: the header is not JSON at byte {LENGTH_BYTES + len(text[: error.pos].encode())}: "
            f"{error.msg}"
        ) from None
    except (RecursionError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: the header is not JSON that can be read: {error}") from None
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object")
    if len(entries) > MAX_TENSORS:
        raise CheckpointError(f"{path}: has {len(entries)} tensors, over the limit of {MAX_TENSORS}")
    return entries


def _checked_metadata(path: Path, metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ in the header is not an object of strings")
    return metadata


def _checked_tensors(
    path: Path, entries: dict[str, Any], *, data_start: int, file_bytes: int
) -> dict[str, StoredTensor]:
    """Check every entry, and that together they cover the rest of the file exactly once."""
    tensors = [_checked_tensor(path, name, entry, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.size_bytes))
    position = data_start
    for tensor in tensors:
        if tensor.start != position:
            what = "overlaps the tensor before it" if tensor.start < position else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: tensor {tensor.name!r} starts at byte {tensor.start} where {position} is expected; "
                f"it {what}"
            )
        position += tensor.size_bytes
    if position != file_bytes:
        what = "is truncated" if position > file_bytes else "has trailing bytes"
        raise CheckpointError(
            f"{path}: {what}: its tensors end at byte {position}, the file at byte {file_bytes}"
        )
    return {tensor.name: tensor for tensor in tensors}


def _checked_tensor(path: Path, name: str, entry: object, data_start: int) -> StoredTensor:
    def refuse(reason: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name[:200]!r}: {reason}")

    if not is_plain_name(name):
        raise refuse(f"its name is not printable or has more than {MAX_NAME} characters")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse("its header entry is not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"dtype {str(dtype)[:40]!r} is not one of {', '.join(DTYPES)}")
    if not _are_counts(shape) or len(shape) > 8:
        raise refuse(f"shape {str(shape)[:80]} is not a list of at most 8 sizes")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse(f"data_offsets {str(offsets)[:80]} are not a begin and an end")
    size_bytes = DTYPES[dtype].itemsize
    for side in shape:
        size_bytes *= side
    if size_bytes != offsets[1] - offsets[0]:
        raise refuse(
            f"{dtype} {shape} needs {size_bytes} bytes, data_offsets at byte {data_start + offsets[0]} "
            f"give it {offsets[1] - offsets[0]}"
        )
    return StoredTensor(name, DTYPES[dtype], tuple(shape), data_start + offsets[0], size_bytes)


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
