"""Malformed files: each is refused before anything of it is believed, with the file and the reason."""

import contextlib
import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from model.bundle import open_bundle
from model.checkpoint import CheckpointError, load_into
from model.loading import Component
from model.names import as_named
from model.recognition import find_parts
from model.safetensors_file import FileReader, SafetensorsFile, StoredTensor, open_regular

VALUES = torch.arange(6, dtype=torch.float32).reshape(2, 3)
GOOD = save({"proj.weight": VALUES, "proj.bias": torch.ones(2)})
FP8 = {
    "proj.weight": VALUES.to(torch.float8_e4m3fn),
    "proj.bias": torch.ones(2),
    "proj.weight_scale": torch.tensor(1.0),
}
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def file_of(header: object, data: bytes = bytes(24)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(**changes: object) -> bytes:
    return file_of({"weight": ENTRY | changes})


def quantised_as(name: str) -> torch.Tensor:
    return torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)


def two(first: list[int], second: list[int], size: int) -> bytes:
    """Two float32 vectors at the given offsets."""
    return file_of(
        {
            name: {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end]}
            for name, (begin, end) in (("a", first), ("b", second))
        },
        bytes(size),
    )


def header_format(name: str | None) -> dict[str, str]:
    layer = {"format": name} if name else "nothing"
    return {"_quantization_metadata": json.dumps({"layers": {"model.diffusion_model.proj": layer}})}


E4M3 = quantised_as("float8_e4m3fn")
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has 0 bytes"),
    "shorter than its length field": (b"\x01\x00\x00", "has 3 bytes"),
    "length field beyond everything": (b"\xff" * 8 + b"{}", "not a safetensors file"),
    "header longer than the file": (struct.pack("<Q", 1000) + b"{}", "ends at byte 10"),
    "header of zero bytes": (struct.pack("<Q", 0), "does not begin with"),
    "header with leading space": (file_of(b" {}", b""), "does not begin with"),
    "header that is an array": (file_of(b"[]", b""), "does not begin with"),
    "header that is not JSON": (file_of(b"{weights}", b""), "not JSON at byte 9"),
    "header cut in the middle": (file_of(b'{"weight": {"dtype"', b""), "not JSON"),
    "header that is not UTF-8": (file_of(b'{"\xff\xfe": 1}', b""), "not UTF-8 at byte 10"),
    "header nested without end": (file_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""), "not JSON"),
    "number of a million digits": (file_of(b'{"a":' + b"9" * 1_000_000 + b"}", b""), "not JSON"),
    "a name twice": (
        file_of(b'{"w":%s,"w":%s}' % ((json.dumps(ENTRY).encode(),) * 2)),
        "the key 'w' twice",
    ),
    "not JSON behind letters of two bytes": (file_of('{"äöü":'.encode() + b"!}", b""), "not JSON at byte 18"),
    "a name with a line break": (file_of({"a\nlevel=error": ENTRY}), "not printable"),
    "a name that is half a letter": (
        file_of(b'{"\\ud800":%s}' % json.dumps(ENTRY).encode()),
        "not printable",
    ),
    "an endless name": (file_of({"x" * 1_000_000: ENTRY}), "more than 1000 characters"),
    "an endless name twice": (file_of(b'{"%s":1,"%s":1}' % ((b"x" * 1_000_000,) * 2)), "twice"),
    "metadata that are no strings": (file_of({"__metadata__": {"a": 1}}, b""), "__metadata__"),
    "metadata that are a list": (file_of({"__metadata__": []}, b""), "__metadata__"),
    "an entry that is a number": (file_of({"weight": 1}), "dtype, shape and data_offsets"),
    "an entry without shape": (
        file_of({"weight": {"dtype": "F32", "data_offsets": [0, 24]}}),
        "dtype, shape and data_offsets",
    ),
    "an entry with a field too many": (entry(extra=1), "dtype, shape and data_offsets"),
    "an unknown dtype": (entry(dtype="F4"), "dtype 'F4'"),
    "a dtype that is a list": (entry(dtype=["F32"]), "dtype"),
    "a shape that is a number": (entry(shape=6), "shape 6"),
    "a negative size": (entry(shape=[-2, -3]), r"shape \[-2, -3\]"),
    "a fractional size": (entry(shape=[2.0, 3]), "shape"),
    "a size that is true": (entry(shape=[True, 6]), "shape"),
    "sizes that overflow": (entry(shape=[2**62, 2**62]), "needs"),
    "nine dimensions": (entry(shape=[1] * 7 + [2, 3]), "shape"),
    "offsets that are strings": (entry(data_offsets=["0", "24"]), "data_offsets"),
    "offsets in the wrong order": (entry(data_offsets=[24, 0]), "data_offsets"),
    "three offsets": (entry(data_offsets=[0, 12, 24]), "data_offsets"),
    "negative offsets": (entry(data_offsets=[-24, 0]), "data_offsets"),
    "bytes that do not fit the shape": (entry(shape=[2, 2]), "needs 16 bytes"),
    "offsets beyond the file": (entry(shape=[20], data_offsets=[0, 80]), "is truncated"),
    "truncated by one byte": (GOOD[:-1], "is truncated"),
    "one byte too many": (GOOD + b"\0", "trailing bytes"),
    "another file behind it": (GOOD + GOOD, "trailing bytes"),
    "tensors that overlap": (two([0, 16], [8, 24], 24), "overlaps"),
    "tensors at the same place": (two([0, 16], [0, 16], 16), "overlaps"),
    "a hole between tensors": (two([0, 8], [16, 24], 24), "leaves a hole"),
    "a hole before the first": (two([8, 16], [16, 24], 24), "leaves a hole"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(64), "GGUF files are not supported; use"),
    "a zipped pickle": (b"PK\x03\x04" + bytes(64), "pickle file"),
    "a bare pickle": (b"\x80\x04\x95" + bytes(64), "pickle file"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html><body>404</body></html>", "not a safetensors file"),
    "NaN": (
        save({"proj.weight": torch.full((2, 3), float("nan")), "proj.bias": torch.ones(2)}),
        "'proj.weight' holds nan",
    ),
    "infinity": (
        save({"proj.weight": VALUES, "proj.bias": torch.tensor([1.0, torch.inf])}),
        "'proj.bias' holds inf",
    ),
    "integers": (save({"proj.weight": VALUES.int(), "proj.bias": torch.ones(2)}), "stored as int32"),
    "NF4": (
        save({"proj.weight.quant_state.bitsandbytes__nf4": torch.ones(2), "proj.weight": VALUES}),
        "bitsandbytes",
    ),
    "nvfp4": (save({"proj.weight": VALUES, "proj.weight_scale_2": torch.ones(1)}), "nvfp4"),
    "an unknown quantised format": (save(FP8 | {"proj.comfy_quant": quantised_as("mxfp8")}), "'mxfp8'"),
    "a quantised format that is no JSON": (save(FP8 | {"proj.comfy_quant": VALUES[0].byte()}), "JSON"),
    "a quantised format without its scale": (
        save({key: FP8[key] for key in ("proj.weight", "proj.bias")} | {"proj.comfy_quant": E4M3}),
        "scale of the quantised tensor 'proj.weight' is missing",
    ),
    "an unknown format in the header": (save(FP8, header_format("int8_tensorwise")), "'int8_tensorwise'"),
    "a format in the header that is a string": (save(FP8, header_format(None)), "'nothing'"),
    "a header that describes no object": (save(FP8, {"_quantization_metadata": "[1]"}), "not a JSON object"),
    "a header that describes a list of layers": (
        save(FP8, {"_quantization_metadata": '{"layers": [1]}'}),
        "no object of layers",
    ),
    "one scale per row": (save(FP8 | {"proj.weight_scale": torch.ones(2)}), "one scale per tensor"),
    "a missing tensor": (save({"proj.weight": VALUES}), "1 missing: proj.bias"),
    "an unexpected tensor": (
        save({"proj.weight": VALUES, "proj.bias": torch.ones(2), "b": VALUES.clone()}),
        "1 unexpected: b",
    ),
    "a transposed tensor": (
        save({"proj.weight": VALUES.T.contiguous(), "proj.bias": torch.ones(2)}),
        "1 wrongly shaped",
    ),
}


def load(path: Path) -> nn.ModuleDict:
    """Load a linear layer from one file, the way every component is loaded."""
    bundle = open_bundle(path, allow_pickle=False)
    assert find_parts(bundle) == []
    with torch.device("meta"):
        module = nn.ModuleDict({"proj": nn.Linear(3, 2)})
    component = Component("layer", path, bundle.tensors, as_named)
    load_into(module, component, device=torch.device("cpu"), dtype=torch.float32)
    return module


def test_a_good_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(GOOD)
    assert torch.equal(load(path)["proj"].weight, VALUES)


@pytest.mark.parametrize("metadata", [None, header_format("float8_e4m3fn")], ids=["plain", "described"])
def test_a_scaled_file_is_loaded(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(save(FP8 | {"proj.weight_scale": torch.tensor(0.5)}, metadata))
    assert torch.equal(load(path)["proj"].weight, VALUES / 2)


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_files_are_refused_with_file_and_reason(tmp_path: Path, kind: str) -> None:
    data, reason = MALFORMED[kind]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (os.mkfifo, "not a regular file"),
        (os.mkdir, "is a directory"),
        (lambda path: os.symlink("/dev/zero", path), "not a regular file"),
        (lambda path: os.symlink("/nowhere", path), "missing"),
    ],
    ids=["FIFO", "directory", "device", "broken link"],
)
def test_what_is_no_file_is_refused_without_waiting_for_it(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "weights.safetensors"
    make(path)
    with pytest.raises(CheckpointError, match=reason):
        load(path)


def test_the_byte_of_a_bad_value_is_told(tmp_path: Path) -> None:
    values = VALUES.clone()
    values[1, 2] = float("nan")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({"proj.weight": values, "proj.bias": torch.ones(2)}))
    with pytest.raises(CheckpointError) as caught:
        load(path)
    position = int(str(caught.value).rpartition("at byte ")[2])
    (found,) = struct.unpack_from("<f", path.read_bytes(), position)
    assert found != found


def test_values_that_overflow_the_target_dtype_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(save({"proj.weight": VALUES * 1e30, "proj.bias": torch.ones(2)}))
    bundle = open_bundle(path, allow_pickle=False)
    with torch.device("meta"):
        module = nn.ModuleDict({"proj": nn.Linear(3, 2)})
    component = Component("layer", path, bundle.tensors, as_named)
    with pytest.raises(CheckpointError, match=r"holds inf .*\(as float16\)"):
        load_into(module, component, device=torch.device("cpu"), dtype=torch.float16)


def test_many_names_are_compared_in_no_time(tmp_path: Path) -> None:
    """A header of 32 MB holds two million names; comparing each with each would take hours."""
    names = [*range(60_000), 59_999]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(file_of(b"{" + b",".join(b'"%d":1' % name for name in names) + b"}"))
    began_s = time.process_time()
    with pytest.raises(CheckpointError, match="'59999' twice"):
        SafetensorsFile.open(path)
    assert time.process_time() - began_s < 5


def test_a_device_that_fails_to_read_is_an_error_of_the_checkpoint() -> None:
    path = Path("/proc/self/mem")  # nothing is mapped at its first byte: EIO
    tensor = StoredTensor("weight", torch.uint8, (8,), 0, 8)
    with open_regular(path) as fd, pytest.raises(CheckpointError, match="cannot be read at byte 0"):
        FileReader(path, fd).read_into(tensor, 0, memoryview(bytearray(8)))


def test_too_many_tensors_are_refused(tmp_path: Path) -> None:
    header = {f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}
    path = tmp_path / "weights.safetensors"
    path.write_bytes(file_of(header, b""))
    with pytest.raises(CheckpointError, match="100001 tensors"):
        SafetensorsFile.open(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_mutation_of_a_file_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    mutated = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(mutated) - 1))
        match data.draw(st.integers(0, 2)):
            case 0:
                mutated[position] = data.draw(st.integers(0, 255))
            case 1:
                del mutated[position:]
                mutated += b"\0"
            case _:
                mutated[position:position] = data.draw(st.binary(max_size=8))
    path = tmp_path_factory.getbasetemp() / "mutated.safetensors"
    path.write_bytes(bytes(mutated))
    try:
        file = SafetensorsFile.open(path)
    except CheckpointError:
        return
    assert sum(tensor.size_bytes for tensor in file.tensors.values()) <= len(mutated)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "BOOL", "F4", ""]) | JSON,
        "shape": st.lists(st.integers(-1, 4) | st.just(2**62), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-4, 40), min_size=2, max_size=2) | JSON,
    }
)
HEADERS = st.dictionaries(
    st.sampled_from(["proj.weight", "proj.bias", "proj.weight_scale", "proj.comfy_quant", "__metadata__"])
    | st.text(max_size=5),
    FIELDS | JSON,
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(header=HEADERS, data=st.binary(max_size=40))
def test_no_header_raises_anything_else_when_it_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, object], data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn.safetensors"
    path.write_bytes(file_of(header, data))
    with contextlib.suppress(CheckpointError):
        load(path)
