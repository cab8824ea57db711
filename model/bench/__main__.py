"""`python -m model.bench`: whole pictures and their stages timed on this machine, beside diffusers.

On a GPU the model is FLUX.1 [schnell] at its published size with random weights, made on the device; on a
CPU it is the embedded model and one of medium size. A row for every shape and contestant goes to a CSV named
after the device. Times are medians of runs in turn, rates parts of what the same run measures first.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import torch

from kernels.dispatch import choose
from kernels.machine import Roof, appending, csv_name, describe_machine, measure_roof
from model.bench.contest import Contestant, Failed, Work, contest
from model.bench.ours import Ours
from model.bench.rows import Row, rows
from model.device import choose_device, choose_dtype, choose_numerics
from model.generate import EMBEDDED_MODEL
from model.layout import Numerics
from model.pipeline import Pipeline
from model.quantization import QuantizeName, choose_quantization
from model.random_weights import STEPS, random_pipeline
from model.sampling import check_size
from model.sizes import Sizes

MODELS = ("published", "medium", "embedded")
COMPILE_MODES = ("none", "default", "max-autotune", "max-autotune-no-cudagraphs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Time what was asked for; the status is 1 if a contestant failed for more than want of memory."""
    options = _options(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("kernels").setLevel(logging.INFO)
    torch.backends.cudnn.allow_tf32 = False  # as in the worker
    if options.device.type == "cuda":
        torch.cuda.set_device(options.device)
    machine, roof = describe_machine(options.device), measure_roof(options.device, options.dtype)
    print(f"{machine['device']}: {roof}")
    output = options.output or Path(__file__).parent / csv_name(machine)
    failures = _Failures()
    with appending(output, Row) as write:
        for row in bench(options, machine, roof, failures):
            write(row)
            print(f"  {row}", flush=True)
    print(f"{output}: rows added")
    return failures.status


def bench(options: argparse.Namespace, machine: dict[str, str], roof: Roof, failed: Failed) -> Iterator[Row]:
    """Yield the rows of every model and shape."""
    for model in options.models:
        pipelines = [build(model, options, quantize) for quantize in options.quantize]
        for work in works(options, pipelines[0].info.default_sequence_length):
            print(f"{model} {work}, {work.steps} steps", flush=True)
            found = contest(
                list(contestants(pipelines, options)),
                work,
                rounds=options.rounds,
                device=options.device,
                failed=failed,
            )
            yield from rows(found, work, model=model, pipeline=pipelines[0], roof=roof, machine=machine)


def build(model: str, options: argparse.Namespace, quantize: QuantizeName) -> Pipeline:
    """Load or make a model; it keeps no prompts."""
    if model == "embedded":
        return Pipeline.load(
            EMBEDDED_MODEL,
            device=options.device,
            dtype=options.dtype,
            numerics=options.numerics,
            quantize=quantize,
            conditioning_cache_bytes=0,
        )
    sizes = Sizes.published() if model == "published" else Sizes.medium()
    ops = choose(
        "auto",
        device=options.device,
        dtype=options.dtype,
        exact=options.numerics is Numerics.EXACT,
        dimensions=sizes.dimensions,
    )
    return random_pipeline(
        sizes,
        ops,
        device=options.device,
        dtype=options.dtype,
        numerics=options.numerics,
        quantization=choose_quantization(quantize, device=options.device, dtype=options.dtype),
    )


def works(options: argparse.Namespace, text_length: int) -> Iterator[Work]:
    """Yield every side in every batch, then the mixed batch if there is one."""
    for side in options.sides:
        for batch in options.batches:
            yield Work((side,) * batch, options.steps, text_length)
    if options.mixed:
        yield Work(tuple(options.mixed), options.steps, text_length)


def contestants(pipelines: Sequence[Pipeline], options: argparse.Namespace) -> Iterator[Contestant]:
    """Yield our pipelines, and rivals on the weights of the first, which are not quantised."""
    yield from map(Ours, pipelines)
    if options.compare == "diffusers":
        rivals = import_module("model.bench.rivals")  # nothing else needs diffusers
        yield rivals.Diffusers(pipelines[0])
        if options.compile_mode != "none":
            yield rivals.Compiled(pipelines[0], mode=options.compile_mode)


class _Failures:
    """Says who failed, and remembers whether it was for more than want of memory."""

    def __init__(self) -> None:
        self.status = 0

    def __call__(self, contestant: Contestant, failure: RuntimeError) -> None:
        if isinstance(failure, torch.OutOfMemoryError):
            print(f"  {contestant.name}: out of memory", flush=True)
        else:
            print(f"  {contestant.name}: fails: {failure}", flush=True)
            self.status = 1


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and fill in what depends on the device."""
    parser = argparse.ArgumentParser(prog="python -m model.bench", description=__doc__)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: see above")
    parser.add_argument("--sides", type=int, nargs="+", help="pixels; default 256 to 1536, on a CPU 256")
    parser.add_argument("--batches", type=int, nargs="+", help="default 1 2 4 8, on a CPU 1 4")
    parser.add_argument("--mixed", type=int, nargs="*", help="sides of one more batch; default on a CPU only")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rounds", type=int, default=5, help="timed runs of every contestant")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--numerics", default="auto", choices=["auto", "exact", "fast"])
    parser.add_argument("--quantize", nargs="+", default=["none"], choices=["none", "fp8"])
    parser.add_argument("--compare", choices=["diffusers", "nobody"], help="default on a CPU: diffusers")
    parser.add_argument(
        "--compile-mode", choices=COMPILE_MODES, help="of diffusers compiled; default on a CPU: none"
    )
    parser.add_argument("--output", type=Path, help="CSV; default: beside this file, named after the device")
    options = parser.parse_args(arguments)
    try:
        options.device = choose_device(options.device)
        options.dtype = choose_dtype(options.dtype, options.device)
        for side in (*(options.sides or ()), *(options.mixed or ())):
            check_size(width=side, height=side)
        for quantize in options.quantize:
            choose_quantization(quantize, device=options.device, dtype=options.dtype)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    options.numerics = choose_numerics(options.numerics, options.device)
    for name, value in _defaults(options.device).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.compare == "diffusers" and options.quantize[0] != "none":
        parser.error("--compare diffusers runs on the first of --quantize, which must be none")
    if min(*options.batches, options.steps, options.rounds) < 1:
        parser.error("--batches, --steps and --rounds: each must be at least 1")
    return options


def _defaults(device: torch.device) -> dict[str, object]:
    if device.type == "cpu":
        return {
            "models": ["embedded", "medium"],
            "sides": [256],
            "batches": [1, 4],
            "mixed": [256, 288, 320, 384],
            "compare": "diffusers",
            "compile_mode": "none",
        }
    return {
        "models": ["published"],
        "sides": [256, 512, 768, 1024, 1536],
        "batches": [1, 2, 4, 8],
        "mixed": [],
        "compare": "nobody",  # compiling it takes a minute a shape
        "compile_mode": "default",
    }


if __name__ == "__main__":
    sys.exit(main())
