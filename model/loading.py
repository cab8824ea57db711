"""Tensor data from files into a module: one buffer at a time, every value checked, every byte hashed.

A module is built on the meta device; each parameter is allocated once, on its target device and in its
target dtype, and filled in place. Beside the model itself memory holds one small buffer per thread.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from model.bundle import Located
from model.names import Naming, is_ignored
from model.safetensors_file import CheckpointError, Reader, StoredTensor

BUFFER_BYTES = 1 << 20  # 8 MiB took 1.3 to 1.6 times a model of 256 MiB at the peak, this 1.1
MAX_THREADS = 4
LISTED = 20  # names per kind in an error message
FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
SCALE_SPELLINGS = ("scale_weight", "weight_scale")

Advance = Callable[[int], None]  # called with the bytes just read


@dataclass(frozen=True, slots=True)
class Component:
    """The stored tensors of one module, by name behind any prefix, and where each parameter is found."""

    label: str
    path: Path
    tensors: dict[str, Located]
    metadata: dict[str, str]
    naming: Naming

    @property
    def size_bytes(self) -> int:
        return sum(located.tensor.size_bytes for located in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Piece:
    """One stored tensor and the rows of the parameter that it fills."""

    name: str
    located: Located
    scale: Located | None
    first_row: int
    rows: int


def load_into(
    module: nn.Module,
    component: Component,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Advance | None = None,
) -> str:
    """Fill `module`, built on the meta device, and return the digest of what was read.

    Raises `CheckpointError`: one error for all missing, unexpected and wrongly shaped tensors before any
    data is read; later one that names file, tensor and byte for values that are not finite and for files
    that change or end too early. The digest covers names, dtypes, shapes and bytes, however they are sharded.
    """
    parameters = _parameters(module)
    pieces = _plan(parameters, component)
    with ExitStack() as stack:
        files = {located.file.path: located.file for located in component.tensors.values()}
        readers = {path: stack.enter_context(file.reading()) for path, file in files.items()}
        loader = _Loader(readers, progress or _no_progress)
        filled = {
            name: torch.empty(parameter.shape, dtype=dtype, device=device)
            for name, parameter in parameters.items()
        }
        jobs = [(filled[name], piece) for name in filled for piece in pieces[name]]
        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
            running = [threads.submit(loader.fill, target, piece) for target, piece in jobs]
            try:
                hashes = [future.result() for future in running]
            finally:
                for future in running:
                    future.cancel()
    for name, tensor in filled.items():
        _assign(module, name, parameters[name], _unswapped(tensor, component.naming(name).swap_halves))
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and persistent buffers, tied ones under their first name only."""
    state = module.state_dict(keep_vars=True)
    first_name: dict[int, str] = {}
    for name, tensor in state.items():
        first_name.setdefault(id(tensor), name)
    return {name: state[name] for name in first_name.values()}


def _plan(parameters: dict[str, Tensor], component: Component) -> dict[str, list[Piece]]:
    """Find the pieces of every parameter; raises one `CheckpointError` for all that does not fit."""
    missing: list[str] = []
    misshapen: list[str] = []
    used: set[str] = set()
    plan: dict[str, list[Piece]] = {}
    for name, parameter in parameters.items():
        recipe = component.naming(name)
        used.update(alternative for part in recipe.parts for alternative in part)
        stored = [next((each for each in part if each in component.tensors), None) for part in recipe.parts]
        if None in stored:
            missing += [part[0] for part, each in zip(recipe.parts, stored, strict=True) if each is None]
            continue
        pieces = list(_pieces(component, [each for each in stored if each is not None]))
        if not _fits(parameter, pieces):
            shapes = ", ".join(f"{piece.name} {list(piece.located.tensor.shape)}" for piece in pieces)
            misshapen.append(f"{shapes} for {list(parameter.shape)}")
        plan[name] = pieces
    unexpected = sorted(name for name in component.tensors if name not in used and not is_ignored(name))
    if missing or unexpected or misshapen:
        raise CheckpointError(_mismatch(component, missing, unexpected, misshapen))
    return plan


def _pieces(component: Component, names: list[str]) -> Iterator[Piece]:
    row = 0
    for name in names:
        located = component.tensors[name]
        rows = located.tensor.shape[0] if located.tensor.shape else 1
        yield Piece(name, located, _scale(component, name, located), row, rows)
        row += rows


def _scale(component: Component, name: str, located: Located) -> Located | None:
    """Return the fp8 scale of a tensor; refuses scaled formats other than one float8 scale per tensor."""
    if not located.tensor.dtype.is_floating_point:
        raise CheckpointError(
            f"{located.file.path}: tensor {name!r} is stored as {_name(located.tensor.dtype)}; integer "
            "weights are not supported, use bf16, fp16 or fp8 (e4m3) files"
        )
    module = name.removesuffix(".weight")
    scales = [
        component.tensors[key] for s in SCALE_SPELLINGS if (key := f"{module}.{s}") in component.tensors
    ]
    if module == name or not scales:
        return None
    _check_comfy_format(component, module, located)
    (scale, *_) = scales
    if scale.tensor.shape not in ((), (1,)):
        raise CheckpointError(
            f"{scale.file.path}: tensor {scale.tensor.name!r} has shape {list(scale.tensor.shape)}; only one "
            "scale per tensor is supported"
        )
    return scale


def _check_comfy_format(component: Component, module: str, located: Located) -> None:
    own = FP8.get(located.tensor.dtype)
    formats: object = {}
    if (described := component.tensors.get(f"{module}.comfy_quant")) is not None:
        formats = _small_json(described)
    elif text := component.metadata.get("_quantization_metadata"):
        layers = _json_object(text, located.file.path).get("layers")
        if isinstance(layers, dict):
            formats = next((value for key, value in layers.items() if str(key).endswith(module)), {})
    stated = formats.get("format", "absent") if isinstance(formats, dict) and formats else own
    if stated != own:
        raise CheckpointError(
            f"{located.file.path}: tensor {located.tensor.name!r} has the quantised format {stated!r}, which "
            "is not supported; use float8_e4m3fn, bf16 or fp16 files"
        )


def _small_json(located: Located) -> dict[str, object]:
    data = bytearray(min(located.tensor.size_bytes, 4096))
    with located.file.reading() as reader:
        reader.read_into(located.tensor, 0, memoryview(data))
    return _json_object(data.decode("utf-8", "replace").rstrip("\0"), located.file.path)


def _json_object(text: str, path: Path) -> dict[str, object]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: its quantisation description is not a JSON object: {text[:80]!r}")
    return content


def _fits(parameter: Tensor, pieces: list[Piece]) -> bool:
    """Whether the pieces stack to the parameter; a 1x1 convolution may be stored as a matrix."""
    wanted = _squeezed(tuple(parameter.shape))
    rests = {_squeezed(piece.located.tensor.shape)[1:] for piece in pieces}
    return rests == {wanted[1:]} and sum(piece.rows for piece in pieces) == wanted[0]


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if shape[2:] == (1, 1) else shape


def _mismatch(component: Component, missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    kinds = (("missing", missing), ("unexpected", unexpected), ("wrongly shaped", misshapen))
    lines = [f"{component.path}: does not fit the {component.label}:"]
    for kind, names in kinds:
        if names:
            more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
            lines.append(f"{len(names)} {kind}: {', '.join(name[:200] for name in names[:LISTED])}{more}")
    return " ".join(lines)


@dataclass(frozen=True, slots=True)
class _Loader:
    readers: dict[Path, Reader]
    advance: Advance

    def fill(self, parameter: Tensor, piece: Piece) -> str:
        """Read one piece into its rows of the parameter and return the line that its digest consists of."""
        stored, path = piece.located.tensor, piece.located.file.path
        target = parameter[piece.first_row : piece.first_row + piece.rows].view(-1)
        scale = self._scalar(piece.scale) if piece.scale is not None else None
        hasher = hashlib.sha256()
        for offset, values in self._chunks(stored, path, target if scale is None else None):
            hasher.update(_bytes(values))
            first = offset // stored.dtype.itemsize
            part = target[first : first + len(values)]
            if values.data_ptr() != part.data_ptr():
                part.copy_(values if scale is None else values.float() * scale)
            if not bool(torch.isfinite(part).all()):
                _refuse_value(path, stored, offset, part)
            self.advance(values.nbytes)
        return f"{piece.name} {_name(stored.dtype)} {list(stored.shape)} {hasher.hexdigest()} {scale}"

    def _chunks(
        self, stored: StoredTensor, path: Path, target: Tensor | None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield byte offset and values [n], read in place where the target holds what is stored."""
        reader, itemsize = self.readers[path], stored.dtype.itemsize
        direct = target is not None and target.dtype == stored.dtype and target.device.type == "cpu"
        if not direct:
            buffer = torch.empty(min(BUFFER_BYTES, stored.size_bytes) // itemsize, dtype=stored.dtype)
        for offset in range(0, stored.size_bytes, BUFFER_BYTES):
            count = min(BUFFER_BYTES, stored.size_bytes - offset) // itemsize
            first = offset // itemsize
            values = target[first : first + count] if direct and target is not None else buffer[:count]
            reader.read_into(stored, offset, _bytes(values))
            yield offset, values

    def _scalar(self, located: Located) -> float:
        value = torch.empty(1, dtype=located.tensor.dtype)
        self.readers[located.file.path].read_into(located.tensor, 0, _bytes(value))
        return float(value)


def _refuse_value(path: Path, stored: StoredTensor, offset: int, values: Tensor) -> None:
    index = int((~torch.isfinite(values)).nonzero()[0])
    position = stored.start + offset + index * stored.dtype.itemsize
    raise CheckpointError(
        f"{path}: tensor {stored.name!r} holds {float(values[index])} at byte {position}"
        f"{'' if values.dtype == stored.dtype else f' (as {_name(values.dtype)})'}"
    )


def _bytes(values: Tensor) -> memoryview:
    return values.view(torch.uint8).numpy().data


def _unswapped(tensor: Tensor, swap_halves: bool) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1]) if swap_halves else tensor


def _assign(module: nn.Module, name: str, parameter: Tensor, tensor: Tensor) -> None:
    """Put `tensor` wherever `parameter` stood, so that tied parameters stay one."""
    value = nn.Parameter(tensor, requires_grad=False) if isinstance(parameter, nn.Parameter) else tensor
    for each, existing in module.state_dict(keep_vars=True).items():
        if existing is parameter:
            owner, _, leaf = each.rpartition(".")
            setattr(module.get_submodule(owner), leaf, value)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _no_progress(count: int) -> None:
    pass
