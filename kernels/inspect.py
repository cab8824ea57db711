"""`python -m kernels.inspect`: what the compiler makes of every kernel, on a machine without a GPU.

Every operation is called as the model calls it, at the widths of FLUX.1 and of the embedded model, on tensors
without memory; each launch is caught and compiled for each architecture instead of run. For each it prints
registers, spilled bytes and shared memory, and how often the SASS has the instructions of the tensor cores of
Hopper (HGMMA), of those before (HMMA), of tensor descriptors (UTMALDG), and those by which warps that load
hand registers to warps that compute (USETMAXREG).
"""

import argparse
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from kernels import activation, attention, group_norm, low_rank, matmul, norm, pictures, rotary
from kernels.devices import Target, simulating
from kernels.float8 import FLOAT8, FLOAT8_UNITS
from kernels.launches import caught
from kernels.rows import Owners, Sequences, Span
from kernels.updates import MAX_KERNEL_RANK, LowRank, Update, Updates

ARCHITECTURES = {
    # shared memory that one program may have, in bytes (CUDA C++ Programming Guide, compute capabilities)
    80: 163 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    120: 99 * 1024,
}
INSTRUCTIONS = ("HGMMA", "HMMA", "UTMALDG", "USETMAXREG")
_THEIR_PTX = re.compile(r"\b(wgmma|mma|tensor|setmaxnreg)\b")  # what ptxas makes them of
_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    FLOAT8: "fp8e4nv",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with the arguments of a call, as the compiler needs them."""

    op: str
    kernel: JITFunction[Any]
    signature: dict[str, str]
    constants: dict[str, object]
    divisible: tuple[int, ...]  # arguments that are multiples of 16
    options: dict[str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a launch on one architecture."""

    op: str
    kernel: str
    architecture: int
    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int
    instructions: dict[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.inspect", description=__doc__)
    parser.add_argument("--architectures", type=int, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16", "float32"])
    parser.add_argument("--only", default="", help="operations whose name begins so")
    options = parser.parse_args()
    print("architecture,op,kernel,registers,spilled_bytes,stack_bytes,shared_bytes," + ",".join(INSTRUCTIONS))
    dtypes = [getattr(torch, name) for name in options.dtypes]
    for report in inspect(options.architectures, dtypes, only=options.only):
        counts = ",".join(str(report.instructions[name]) for name in INSTRUCTIONS)
        print(
            f"sm_{report.architecture},{report.op},{report.kernel},{report.registers},{report.spilled_bytes},"
            f"{report.stack_bytes},{report.shared_bytes},{counts}",
            flush=True,
        )


def inspect(architectures: list[int], dtypes: list[torch.dtype], *, only: str) -> Iterator[Report]:
    """Compile every launch of operations whose name begins with `only`, for every architecture."""
    for architecture in architectures:
        for dtype in dtypes:
            for launch in launches(architecture, dtype):
                if launch.op.startswith(only):
                    yield compile_for(launch, architecture)


def launches(architecture: int, dtype: torch.dtype) -> list[Launch]:
    """Call every operation and catch what it launches."""
    found: list[Launch] = []
    capability = divmod(architecture, 10)
    calls = list(_calls(dtype, has_one_loop=capability in ((9, 0), (10, 0))))
    if capability >= FLOAT8_UNITS:
        calls += _quantizing(dtype)
    for op, call in calls:
        with simulating(Target(capability, 132)), caught(partial(_noted, found, op)):
            call()
    return found


def _calls(dtype: torch.dtype, *, has_one_loop: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every operation at the widths of FLUX.1 [schnell], attention also with the smaller heads."""
    rows, width = 512, 3072
    layout = Owners.build([Span(256, 256), Span(0, 256)], torch.device("cpu"))
    owners = Owners(layout.spans, layout.by_row.to("meta"))
    x, wide = _tensor(rows, width, dtype=dtype), _tensor(rows, 7 * width, dtype=dtype)
    vectors = _tensor(2, width, dtype=dtype)
    weight, bias = _tensor(4 * width, width, dtype=dtype), _tensor(4 * width, dtype=dtype)
    up, table, scale = wide[:, 3 * width :], _tensor(rows, 64), _tensor(128, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    states = _tensor(rows, 4096, dtype=dtype)  # T5's
    yield f"rms_norm {name}", lambda: norm.rms_norm(states, states[0])
    yield f"modulated_norm {name}", lambda: norm.modulated_norm(x, vectors, vectors, owners)
    yield (
        f"gated_residual_norm {name}",
        lambda: norm.gated_residual_norm(x, vectors, x, vectors, vectors, owners),
    )
    qkv = wide[:, : 3 * width]
    yield f"qk_norm_rope {name}", lambda: rotary.qk_norm_rope(qkv, scale, scale, table, table)
    yield f"gelu_tanh {name}", lambda: activation.gelu_tanh(up, (rows,))
    yield f"linear {name}", lambda: matmul.linear(x, weight, bias, (rows,))
    yield f"linear_gelu {name}", lambda: matmul.linear_gelu(x, weight, bias, (rows,))
    yield (
        f"linear_residual {name}",
        lambda: matmul.linear_residual(x, vectors, owners.by_row, x, weight[:width], bias[:width], (rows,)),
    )
    for rank in (32, MAX_KERNEL_RANK):  # the most of each number of warps
        yield f"low_rank_add {rank} {name}", partial(_update, x, wide, rank)
    for heads, head_dim in ((24, 128), (6, 64), (6, 32)):
        yield (
            f"attention {head_dim} {name}",
            partial(_attend, attention.attention, rows, heads, head_dim, dtype),
        )
    if has_one_loop and dtype != torch.float32:
        for kind, specialised in (("one loop", False), ("specialised", True)):
            rival = partial(attention.one_loop_attention, specialised=specialised)
            yield f"attention {kind} {name}", partial(_attend, rival, rows + 16, 24, 128, dtype)
    image = _tensor(1, 128, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
    each = _tensor(128, dtype=dtype)
    yield (
        f"group_norm_silu {name}",
        lambda: group_norm.group_norm_silu(image, 32, each, each, 1e-6, silu=True),
    )
    yield f"to_pixels {name}", lambda: pictures.to_pixels(_tensor(3, 64, 64, dtype=dtype))
    latents, velocity = _tensor(rows, 64), _tensor(rows, 64, dtype=dtype)
    yield f"euler_step {name}", lambda: pictures.euler_step(latents, velocity, _tensor(2), owners)


def _quantizing(dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], object]]]:
    """The operations that write e4m3, as a single block calls them."""
    rows, width = 512, 3072
    layout = Owners.build([Span(256, 256), Span(0, 256)], torch.device("cpu"))
    owners = Owners(layout.spans, layout.by_row.to("meta"))
    x, up, vectors = (
        _tensor(n, columns, dtype=dtype) for n, columns in ((rows, width), (rows, 4 * width), (2, width))
    )
    name = str(dtype).removeprefix("torch.")
    yield f"quantize {name}", lambda: activation.quantize(x)
    yield f"quantized_gelu {name}", lambda: activation.quantized_gelu(up, (rows,), x)
    yield (
        f"quantized modulated_norm {name}",
        lambda: norm.modulated_norm(x, vectors, vectors, owners, quantized=True),
    )
    yield (
        f"quantized gated_residual_norm {name}",
        lambda: norm.gated_residual_norm(x, vectors, x, vectors, vectors, owners, quantized=True),
    )


def _update(x: Tensor, out: Tensor, rank: int) -> None:
    outputs = Span(0, out.shape[1])
    down, up = (_tensor(*shape, dtype=x.dtype) for shape in ((rank, x.shape[1]), (outputs.rows, rank)))
    change = LowRank(down, up, outputs)
    low_rank.low_rank_add(x, Updates.build([Update(Span(0, len(x)), change)], x.device), out)


def _attend(op: Callable[..., Tensor], rows: int, heads: int, head_dim: int, dtype: torch.dtype) -> None:
    built = Sequences.build([(Span(0, rows // 2), Span(rows // 2, rows // 2))], torch.device("cpu"))
    sequences = Sequences(built.spans, built.tiles.to("meta"))
    q, k, v = _tensor(rows, 3, heads, head_dim, dtype=dtype).unbind(1)
    op(q, k, v, sequences)


def _tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _noted(
    found: list[Launch], op: str, kernel: JITFunction[Any], args: tuple[object, ...], options: dict[str, Any]
) -> None:
    named = dict(zip(kernel.arg_names, args, strict=False))
    named |= {name: options[name] for name in kernel.arg_names if name in options}
    constexprs = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    signature: dict[str, str] = {}
    constants: dict[str, object] = {}
    divisible = []
    for index, name in enumerate(kernel.arg_names):
        value = named[name]
        if name in constexprs or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        else:
            signature[name] = _type(value)
            if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
                divisible.append(index)
    compiler = {name: int(options[name]) for name in options if name in ("num_warps", "num_stages")}
    found.append(Launch(op, kernel, signature, constants, tuple(divisible), compiler))


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}"
    return "i32" if isinstance(value, int) else "fp32"


def compile_for(launch: Launch, architecture: int) -> Report:
    """Compile a launch and read what came out."""
    source = ASTSource(
        fn=launch.kernel,
        signature=launch.signature,
        constexprs={(launch.kernel.arg_names.index(n),): v for n, v in launch.constants.items()},
        attrs={(index,): [["tt.divisibility", 16]] for index in launch.divisible},
    )
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=dict(launch.options))
    cubin = compiled.asm["cubin"]
    usage = _dumped(cubin, "--dump-resource-usage")
    # The disassembler takes 0.3 s of a CPU for the smallest kernel, three quarters of the whole.
    sass = _dumped(cubin, "--dump-sass") if _THEIR_PTX.search(compiled.asm["ptx"]) else ""
    return Report(
        op=launch.op,
        kernel=launch.kernel.__name__,
        architecture=architecture,
        registers=_number(r"REG:(\d+)", usage),
        spilled_bytes=_number(r"LOCAL:(\d+)", usage),
        stack_bytes=_number(r"STACK:(\d+)", usage),
        shared_bytes=compiled.metadata.shared,
        instructions={name: len(re.findall(rf"\b{name}\b", sass)) for name in INSTRUCTIONS},
    )


def _dumped(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(pattern: str, text: str) -> int:
    (found,) = re.findall(pattern, text)
    return int(found)


if __name__ == "__main__":
    main()
