"""LoRA adapters: a file checked and read, and the low-rank changes of one or more of them in a step.

Files of every common tool are read as they are (model/adapter_names.py). What changes the model in another
way than by low-rank changes of the transformer's linears is refused, since a part of an adapter is another
adapter. Weights are never touched; kernels/reference.py has the formula.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from kernels.updates import MAX_KERNEL_RANK, LowRank, Update, Updates
from model.adapter_names import Part, Place, describe_unsupported, parse_key, places
from model.layers import Changes
from model.layout import Layout, StreamName
from model.quantization import Linear
from model.safetensors_file import CheckpointError, Reader, SafetensorsFile, StoredTensor
from model.transformer import Transformer
from model.verify import file_sum

MAX_RANK = 512  # 128 of each of q, k, v and MLP, where they were trained apart and stored as one
MAX_FACTOR = 1e6  # beyond it an alpha is damaged, and a picture would not be finite
METADATA = "lora_adapter_metadata"  # what diffusers writes of PEFT's configuration into a header


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Adapter:
    """The changes of an adapter by the layer of the transformer, on its device and in its dtype.

    `digest` is the SHA-256 of its file.
    """

    digest: str
    changes: Changes
    size_bytes: int


class Scaled(NamedTuple):
    """An adapter and what its changes are multiplied by."""

    adapter: Adapter
    scale: float


def merged(adapters: Sequence[Scaled]) -> Changes:
    """Return the changes of several adapters, in their order."""
    changes: dict[nn.Module, list[LowRank]] = {}
    for adapter, scale in adapters:
        for layer, own in adapter.changes.items():
            changes.setdefault(layer, []).extend(change.scaled(scale) for change in own)
    return changes


def adapted(layout: Layout, transformer: Transformer, changes: Sequence[Changes]) -> Layout:
    """Return `layout` with what the changes of each of its samples add to the products of a step."""
    found: dict[StreamName, dict[nn.Module, list[Update]]] = {"txt": {}, "img": {}, "joint": {}}
    for name, layer in transformer.step_linears():
        updates = [
            Update(rows, change)
            for sample, own in enumerate(changes)
            for change in own.get(layer, ())
            for rows in layout.own_rows(sample, layout.stream(name))
        ]
        if updates:
            found[name][layer] = updates
    device = layout.owners.by_row.device
    txt, img, joint = (
        replace(layout.stream(name), updates=Updates.build_all(by_layer, device))
        for name, by_layer in found.items()
    )
    return replace(layout, txt=txt, img=img, joint=joint)


@torch.inference_mode()
def load_adapter(path: Path, transformer: Transformer, *, limit_bytes: int) -> Adapter:
    """Load an adapter of at most `limit_bytes` onto the device of its transformer.

    Raises `CheckpointError` for a file that is damaged, that does not fit the transformer, that changes it in
    another way, or that is too large.
    """
    file = _AdapterFile.open(path, transformer)
    if file.size_bytes > limit_bytes:
        raise CheckpointError(
            f"{path}: takes {file.size_bytes >> 20} MiB of the device, {limit_bytes >> 20} MiB are left"
        )
    return file.load()


@dataclass(frozen=True, slots=True)
class _Pair:
    """The tensors of one change, and the place they belong to."""

    module: str
    place: Place
    down: StoredTensor
    up: StoredTensor
    alpha: StoredTensor | None

    @property
    def rank(self) -> int:
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class _AdapterFile:
    """An adapter's file whose header fits a transformer; no tensor data has been read."""

    file: SafetensorsFile
    transformer: Transformer
    pairs: tuple[_Pair, ...]
    scaling: "_Scaling"

    @classmethod
    def open(cls, path: Path, transformer: Transformer) -> Self:
        """Check the header of `path`; raises `CheckpointError`, one for all keys that are not supported."""
        file = SafetensorsFile.open(path)
        pairs = tuple(_pairs(file, places(transformer)))
        for pair in pairs:
            _check_shapes(path, pair, transformer)
        return cls(file, transformer, pairs, _Scaling.described_in(file))

    @property
    def size_bytes(self) -> int:
        """What the loaded adapter takes on the device."""
        elements = sum(pair.rank * (pair.down.shape[1] + pair.up.shape[0]) for pair in self.pairs)
        return elements * self.transformer.img_in.weight.dtype.itemsize

    def load(self) -> Adapter:
        """Read the adapter onto the device of its transformer; raises `CheckpointError` for values that are
        not finite there and for a file that changed."""
        changes: dict[nn.Module, tuple[LowRank, ...]] = {}
        with self.file.reading() as reader:
            digest = file_sum(self.file.path)
            for pair in self.pairs:
                layer = self.transformer.get_submodule(pair.place.layer)
                changes[layer] = (*changes.get(layer, ()), *self._changes(reader, pair))
        return Adapter(digest, changes, self.size_bytes)

    def _changes(self, reader: Reader, pair: _Pair) -> Iterator[LowRank]:
        """Read one change; what is wider than the kernel takes becomes several."""
        down, up = (self._weight(reader, stored) for stored in (pair.down, pair.up))
        if pair.place.swap_halves:
            up = torch.cat(up.chunk(2)[::-1])
        alpha = None if pair.alpha is None else float(_values(self.file.path, reader, pair.alpha))
        scale = self.scaling.factor(pair.module, pair.rank, alpha)
        if not abs(scale) <= MAX_FACTOR:  # not a number is not either
            raise CheckpointError(
                f"{self.file.path}: the alpha of {pair.module!r} multiplies its change by {scale:g}; "
                f"allowed: at most {MAX_FACTOR:g}"
            )
        for first in range(0, pair.rank, MAX_KERNEL_RANK):
            ranks = slice(first, first + MAX_KERNEL_RANK)
            yield LowRank(down[ranks].contiguous(), up[:, ranks].contiguous(), pair.place.outputs, scale)

    def _weight(self, reader: Reader, stored: StoredTensor) -> Tensor:
        weight = self.transformer.img_in.weight
        return _values(self.file.path, reader, stored, weight.dtype).flatten(1).to(weight.device)


def _pairs(file: SafetensorsFile, known: Mapping[str, Place]) -> Iterator[_Pair]:
    """Put together what belongs together; raises `CheckpointError` unless that is everything."""
    modules: dict[str, dict[Part, StoredTensor]] = {}
    unsupported = []
    for name, tensor in file.tensors.items():
        key = parse_key(name)
        if key is None or key.module not in known or key.part in modules.get(key.module, {}):
            unsupported.append(name)
        else:
            modules.setdefault(key.module, {})[key.part] = tensor
    if unsupported:
        raise CheckpointError(
            f"{file.path}: {describe_unsupported(unsupported)}: only low-rank changes of the linears of the "
            "FLUX.1 transformer are supported, each in one key style"
        )
    if not modules:
        raise CheckpointError(f"{file.path}: has no tensors")
    taken: dict[Place, str] = {}
    for module, parts in modules.items():
        place = known[module]
        if Part.DOWN not in parts or Part.UP not in parts:
            raise CheckpointError(
                f"{file.path}: of layer {module!r} it has only {', '.join(p.value for p in parts)}"
            )
        if (other := taken.setdefault(place, module)) != module:
            raise CheckpointError(f"{file.path}: {other!r} and {module!r} are the same layer")
        yield _Pair(module, place, parts[Part.DOWN], parts[Part.UP], parts.get(Part.ALPHA))


def _check_shapes(path: Path, pair: _Pair, transformer: Transformer) -> None:
    """Raise `CheckpointError` unless a change has the sides of its layer, as matrices or 1x1 convolutions."""
    layer = transformer.get_submodule(pair.place.layer)
    assert isinstance(layer, Linear), "places are those of linears"
    for stored in (pair.down, pair.up):
        if len(stored.shape) < 2 or stored.shape[2:] not in ((), (1, 1)):
            raise CheckpointError(
                f"{path}: tensor {stored.name!r} has shape {list(stored.shape)}, not a matrix"
            )
    (rank, inputs), (outputs, up_rank) = pair.down.shape[:2], pair.up.shape[:2]
    wanted = (layer.in_features, pair.place.outputs.rows)
    if (inputs, outputs) != wanted or rank != up_rank:
        raise CheckpointError(
            f"{path}: {pair.down.name!r} {list(pair.down.shape)} and {pair.up.name!r} {list(pair.up.shape)} "
            f"do not change a layer of {wanted[0]} inputs and {wanted[1]} outputs: the adapter belongs to "
            "another model, or to a control model"
        )
    if not 1 <= rank <= MAX_RANK:
        raise CheckpointError(f"{path}: {pair.down.name!r} has rank {rank}; allowed are 1 to {MAX_RANK}")
    if pair.alpha is not None and pair.alpha.shape not in ((), (1,)):
        raise CheckpointError(
            f"{path}: {pair.alpha.name!r} has shape {list(pair.alpha.shape)}, not one value"
        )


def _values(path: Path, reader: Reader, stored: StoredTensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Read a tensor in `dtype`; raises `CheckpointError` for what is not finite in it."""
    if not stored.dtype.is_floating_point:
        raise CheckpointError(
            f"{path}: tensor {stored.name!r} is stored as {stored.dtype}, not floating point"
        )
    data = torch.empty(stored.size_bytes, dtype=torch.uint8)
    reader.read_into(stored, 0, data.numpy().data)
    values = data.view(stored.dtype).view(stored.shape).to(dtype)
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(f"{path}: tensor {stored.name!r} holds values that are not finite as {dtype}")
    return values


@dataclass(frozen=True, slots=True)
class _Scaling:
    """What PEFT's configuration in a header says of `alpha`; without one `alpha` is the rank."""

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] | None = None
    by_root: bool = False  # rank-stabilised: alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732)

    @classmethod
    def described_in(cls, file: SafetensorsFile) -> Self:
        if (text := file.metadata.get(METADATA)) is None:
            return cls()
        try:
            stated = json.loads(text)
            entries = {name.removeprefix("transformer."): value for name, value in stated.items()}
            if entries.get("use_dora"):
                raise CheckpointError(f"{file.path}: was trained with DoRA, which is not supported")
            pattern = {name: float(alpha) for name, alpha in (entries.get("alpha_pattern") or {}).items()}
            alpha = entries.get("lora_alpha")
            return cls(None if alpha is None else float(alpha), pattern, bool(entries.get("use_rslora")))
        except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file.path}: {METADATA} in its header is not what PEFT writes") from None

    def factor(self, module: str, rank: int, stored_alpha: float | None) -> float:
        """Return what a change is multiplied by: a stored alpha goes before a described one."""
        alpha = stored_alpha if stored_alpha is not None else self._described(module)
        if alpha is None:
            return 1.0
        return alpha / (rank**0.5 if self.by_root else rank)

    def _described(self, module: str) -> float | None:
        for name, alpha in (self.alpha_pattern or {}).items():
            if module == name or module.endswith(f".{name}"):
                return alpha
        return self.alpha
