"""Tensor data from files into a module: one buffer at a time, every value checked, every byte hashed.

A module is built on the meta device; each parameter is allocated once, on its target device and in its
target dtype, and filled in place. Beside the model itself memory holds one small buffer per thread, and
where linears are quantised, one weight per thread.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor, nn

from model.arena import Arena
from model.bundle import Located
from model.names import Naming, is_ignored
from model.quantization import QuantizedLinear
from model.safetensors_file import CheckpointError, Reader, StoredTensor, TensorFile

BUFFER_BYTES = 1 << 20  # 8 MiB took 1.3 to 1.6 times a model of 256 MiB at the peak, this 1.1
MAX_THREADS = 4
LISTED = 20  # names per kind in an error message
FP8 = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
SCALE_SPELLINGS = ("scale_weight", "weight_scale")

Advance = Callable[[int], None]  # called with the bytes just read, by one thread at a time
Layers = dict[str, object]  # what a file's header says about its quantised layers


@dataclass(frozen=True, slots=True)
class Component:
    """The stored tensors of one module, by name behind any prefix, and where each parameter is found."""

    label: str
    path: Path
    tensors: dict[str, Located]
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
    arena: Arena | None = None,
    progress: Advance | None = None,
) -> str:
    """Fill `module`, built on the meta device, and return the digest of what was read.

    With `arena`, whose memory is the host's, `device` is the CPU and the parameters lie there.

    Raises `CheckpointError`: one error for all missing, unexpected and wrongly shaped tensors before any
    data is read; later one that names file, tensor and byte for values that are not finite and for files
    that change or end too early. The digest covers names, dtypes, shapes and bytes, however they are sharded.
    """
    state = module.state_dict(keep_vars=True)
    tied = _tied_names(state)
    parameters = {name: state[name] for name in tied}
    pieces = _plan(parameters, component)
    with ExitStack() as stack:
        files = {located.file.path: located.file for located in component.tensors.values()}
        readers = {path: stack.enter_context(file.reading()) for path, file in files.items()}
        loader = _Loader(readers, progress or _no_progress)

        def load(name: str) -> list[str]:
            parameter = parameters[name]
            if arena is not None:
                tensor = arena.empty(parameter.shape, dtype)
            else:
                tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
            hashes = [loader.fill(tensor, piece) for piece in pieces[name]]
            value = _unswapped(tensor, component.naming(name).swap_halves)
            _assign(module, tied[name], parameter, value)
            return hashes

        with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
            running = [threads.submit(load, name) for name in parameters]
            try:
                hashes = [each for future in running for each in future.result()]
            finally:
                for future in running:
                    future.cancel()
    _number_positions(module, device)
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def _tied_names(state: dict[str, Tensor]) -> dict[str, list[str]]:
    """Return, by the first name of each parameter or persistent buffer, all names that it has."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    return {group[0]: group for group in names.values()}


def _plan(parameters: dict[str, Tensor], component: Component) -> dict[str, list[Piece]]:
    """Find the pieces of every parameter; raises one `CheckpointError` for all that does not fit."""
    missing: list[str] = []
    misshapen: list[str] = []
    used: set[str] = set()
    plan: dict[str, list[Piece]] = {}
    files = {located.file.path: located.file for located in component.tensors.values()}
    layers = {path: _described_layers(file) for path, file in files.items()}
    for name, parameter in parameters.items():
        recipe = component.naming(name)
        used.update(alternative for part in recipe.parts for alternative in part)
        stored = [next((each for each in part if each in component.tensors), None) for part in recipe.parts]
        if None in stored:
            missing += [part[0] for part, each in zip(recipe.parts, stored, strict=True) if each is None]
            continue
        pieces = list(_pieces(component, [each for each in stored if each is not None], layers))
        if not _fits(parameter, pieces):
            shapes = ", ".join(f"{piece.name} {list(piece.located.tensor.shape)}" for piece in pieces)
            misshapen.append(f"{shapes} for {list(parameter.shape)}")
        plan[name] = pieces
    unexpected = sorted(name for name in component.tensors if name not in used and not is_ignored(name))
    if missing or unexpected or misshapen:
        raise CheckpointError(_mismatch(component, missing, unexpected, misshapen))
    return plan


def _pieces(component: Component, names: list[str], layers: dict[Path, Layers]) -> Iterator[Piece]:
    row = 0
    for name in names:
        located = component.tensors[name]
        rows = located.tensor.shape[0] if located.tensor.shape else 1
        yield Piece(name, located, _scale(component, name, layers[located.file.path]), row, rows)
        row += rows


def _scale(component: Component, name: str, layers: Layers) -> Located | None:
    """Return the fp8 scale of a tensor; refuses scaled formats other than one float8 scale per tensor."""
    located = component.tensors[name]
    if not located.tensor.dtype.is_floating_point:
        raise CheckpointError(
            f"{located.file.path}: tensor {name!r} is stored as {_name(located.tensor.dtype)}; integer "
            "weights are not supported, use bf16, fp16 or fp8 (e4m3) files"
        )
    module = name.removesuffix(".weight")
    if module == name:
        return None
    described = _refuse_other_formats(component, module, layers)
    scales = [
        component.tensors[key] for s in SCALE_SPELLINGS if (key := f"{module}.{s}") in component.tensors
    ]
    if not scales:
        if described:
            raise CheckpointError(
                f"{located.file.path}: the scale of the quantised tensor {name!r} is missing"
            )
        return None
    (scale, *_) = scales
    if scale.tensor.shape not in ((), (1,)):
        raise CheckpointError(
            f"{scale.file.path}: tensor {scale.tensor.name!r} has shape {list(scale.tensor.shape)}; only one "
            "scale per tensor is supported"
        )
    return scale


def _refuse_other_formats(component: Component, module: str, layers: Layers) -> bool:
    """Return whether a layer is described as quantised; refuses formats other than its own float8."""
    located = component.tensors[f"{module}.weight"]
    if (tensor := component.tensors.get(f"{module}.comfy_quant")) is not None:
        layer: object = _small_json(tensor)
    else:
        known = (key for key in layers if key == module or key.endswith(f".{module}"))
        layer = layers.get(next(known, ""))
    if layer is None:
        return False
    stated = layer.get("format", "absent") if isinstance(layer, dict) else layer
    if stated != FP8.get(located.tensor.dtype):
        raise CheckpointError(
            f"{located.file.path}: tensor {located.tensor.name!r} has the quantised format "
            f"{str(stated)[:80]!r}, which is not supported; use float8_e4m3fn, bf16 or fp16 files"
        )
    return True


def _described_layers(file: TensorFile) -> Layers:
    """Return what newer ComfyUI files say in their header about each layer, by its module."""
    if (text := file.metadata.get("_quantization_metadata")) is None:
        return {}
    layers = _json_object(text, file.path).get("layers", {})
    if not isinstance(layers, dict):
        raise CheckpointError(f"{file.path}: its quantisation description has no object of layers")
    return layers


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
    heads = {piece.rows for piece in pieces[:3]}  # q, k and v, where there is more than one piece
    same = len(pieces) == 1 or len(heads) == 1
    return same and rests == {wanted[1:]} and sum(piece.rows for piece in pieces) == wanted[0]


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
    advancing: Lock = field(default_factory=Lock)

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
            with self.advancing:
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


def _assign(module: nn.Module, names: list[str], parameter: Tensor, tensor: Tensor) -> None:
    """Put `tensor` wherever `parameter` stood, so that tied parameters stay one."""
    value = nn.Parameter(tensor, requires_grad=False) if isinstance(parameter, nn.Parameter) else tensor
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(owner, QuantizedLinear) and leaf == "weight":
            owner.take(tensor)
        else:
            setattr(owner, leaf, value)


def _number_positions(module: nn.Module, device: torch.device) -> None:
    """Count up CLIP's `position_ids`, a buffer that is in no checkpoint and was built without values."""
    for name, buffer in module.named_buffers():
        if buffer.is_meta and name.endswith("position_ids"):
            owner, _, leaf = name.rpartition(".")
            positions = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape)
            setattr(module.get_submodule(owner), leaf, positions)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _no_progress(count: int) -> None:
    pass
