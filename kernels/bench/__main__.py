"""`python -m kernels.bench`: every kernel checked, then timed beside its rivals, on this machine's GPU.

A row for every operation, shape and implementation goes to a CSV named after the GPU; fractions are of the
copy bandwidth and the matrix rate that the same run measures first.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from triton.errors import TritonError
from triton.testing import do_bench

from kernels import reference
from kernels.attention import one_loop_attention
from kernels.cases import Case, Dimensions, Operation, cases, relative_error
from kernels.machine import Roof, appending, csv_name, describe_machine, measure_roof
from kernels.ops import Ops, triton_ops
from kernels.rows import Sequences

SIDES = (256, 512, 768, 1024, 1536)
BATCHES = (1, 4)
Timer = Callable[[Callable[[], object]], tuple[float, float, float]]  # seconds: p20, p50, p80


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the CSV; times in microseconds."""

    op: str
    shape: str
    dtype: str
    implementation: str
    p20_us: float
    p50_us: float
    p80_us: float
    floor_us: float
    share_of_floor: float
    error: float
    device: str
    driver: str
    torch: str
    triton: str
    commit: str


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--output", type=Path, help="default: a file beside this one, named after the GPU")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("python -m kernels.bench needs a GPU: PyTorch sees none")
    device, dtype = torch.device("cuda"), torch.bfloat16
    machine = describe_machine(device)
    roof = measure_roof(device, dtype)
    print(f"{machine['device']}: {roof}")
    output = options.output or Path(__file__).parent / csv_name(machine)
    with appending(output, Row) as write:
        rows = bench(
            shapes(options.sides, options.batches, dtype=dtype, device=device),
            ops=triton_ops(),
            rivals=RIVALS,
            roof=roof,
            dtype=dtype,
            machine=machine,
            timer=seconds,
            compiler=compiled,
        )
        for row in rows:
            write(row)
            print(
                f"{row.op:20} {row.shape:28} {row.implementation:24} {row.p50_us:9.1f} us, "
                f"{100 * row.share_of_floor:3.0f} % of the floor"
            )
    print(f"{output}: rows added")


def shapes(
    sides: Sequence[int], batches: Sequence[int], *, dtype: torch.dtype, device: torch.device
) -> Iterator[Case]:
    """Yield the cases of every side and batch, each shape once: some depend on only one of the two."""
    seen: set[tuple[str, str]] = set()
    for side, batch in product(sides, batches):
        for case in cases([side] * batch, dtype=dtype, device=device, dimensions=Dimensions()):
            if (case.op, case.shape) not in seen:
                seen.add((case.op, case.shape))
                yield case


def bench(
    every: Iterable[Case],
    *,
    ops: Ops,
    rivals: Mapping[str, Mapping[str, Operation]],
    roof: Roof,
    dtype: torch.dtype,
    machine: dict[str, str],
    timer: Timer,
    compiler: Callable[[Operation], Operation] | None = None,
) -> Iterator[Row]:
    """Check and time each case by `ops`, by the reference, and by the `rivals` of its operation.

    A rival that does not run here or computes nonsense is named and left out; raises `AssertionError` for
    one of `ops` that does.
    """
    for case in every:
        expected = case.result(case.reference)
        floor_s = roof.floor_s(case)
        ours = getattr(ops, case.op) or case.reference
        named = {"ours": ours, "torch": case.reference, **rivals.get(case.op, {})}
        if compiler is not None and not case.flops:  # elsewhere the rivals are the libraries'
            named["torch.compile"] = compiler(case.reference)
        for name, operation in named.items():
            try:
                error = relative_error(case.result(operation), expected)
            except (RuntimeError, TritonError, ValueError) as failure:  # what this machine lacks
                print(f"{case.op} at {case.shape}: {name} does not run: {failure}")
                continue
            if not error <= case.tolerance:
                nonsense = f"{case.op} at {case.shape}: {name} is off by {error:.2g} of the norm"
                if name == "ours":
                    raise AssertionError(nonsense)
                print(nonsense)
                continue
            p20, p50, p80 = timer(partial(case.timed, operation))
            yield Row(
                op=case.op,
                shape=case.shape,
                dtype=str(dtype).removeprefix("torch."),
                implementation=name,
                p20_us=1e6 * p20,
                p50_us=1e6 * p50,
                p80_us=1e6 * p80,
                floor_us=1e6 * floor_s,
                share_of_floor=floor_s / p50,
                error=error,
                **machine,
            )


def library_attention(
    backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, out: Tensor | None = None
) -> Tensor:
    """As `reference.attention`, by one backend of PyTorch's."""
    with sdpa_kernel(backend):
        return reference.attention(q, k, v, sequences, out)


RIVALS: dict[str, dict[str, Operation]] = {
    "attention": {
        "cuDNN": partial(library_attention, SDPBackend.CUDNN_ATTENTION),
        "FlashAttention": partial(library_attention, SDPBackend.FLASH_ATTENTION),
        "ours, one loop": partial(one_loop_attention, specialised=False),
        "ours, warp-specialised": partial(one_loop_attention, specialised=True),
    }
}


def compiled(operation: Operation) -> Operation:
    """Compile for this shape alone, whatever was compiled before."""
    torch._dynamo.reset()
    fast: Operation = torch.compile(operation, dynamic=False)
    return fast


def seconds(call: Callable[[], object]) -> tuple[float, float, float]:
    """Time a call on the GPU, the L2 cache cleared before each."""
    p20, p50, p80 = do_bench(call, quantiles=[0.2, 0.5, 0.8])
    return p20 / 1000, p50 / 1000, p80 / 1000


if __name__ == "__main__":
    main()
