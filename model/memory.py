"""`python -m model.memory`: what each preset of `--memory` needs, computed on a machine without a GPU.

Weights are added up from modules without memory. Peaks come from the pipeline itself, run on the meta device
with every launch of a kernel swallowed (model/allocations.py): all that torch and our kernels allocate for
tensors. On top come the CUDA context, the workspaces of cuBLAS and cuDNN, what is kept of earlier requests
(prompts, layouts), and what the allocator loses to fragments.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from kernels import reference
from kernels.devices import Target, simulating
from kernels.float8 import Quantized
from kernels.launches import caught
from kernels.ops import Ops, triton_ops, with_vendor_products
from model.allocations import Allocations
from model.arena import Arena
from model.conditioning import Prompt
from model.layout import Numerics
from model.lending import Memory
from model.pipeline import Pipeline
from model.quantization import Quantization
from model.random_weights import STEPS, TXT_ROWS, random_pipeline
from model.sampling import PIXELS_PER_PATCH
from model.sizes import Sizes, weight_bytes
from model.source import Source

CARDS_GB = (24, 32, 48, 80, 141)
GB = 10**9
DTYPE = torch.bfloat16
META = torch.device("meta")
HOPPER = Target((9, 0), 132)
QUANTIZATIONS = {"bfloat16": Quantization.NONE, "fp8": Quantization.WEIGHTS_AND_INPUTS}


@dataclass(frozen=True, slots=True)
class Peaks:
    """The most bytes at once of each stage, for tensors beside the weights that stay on the device.

    `encoding` is that of prompts; `starting` has the picture that one starts from encoded, when they are.
    """

    encoding: int
    starting: int
    stepping: int
    decoding: int


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that a preset needs with weights of one kind: in `host` memory, and `kept` on the device."""

    weights: str
    memory: Memory
    host: int
    kept: dict[str, int]  # by component
    peaks: Peaks

    @property
    def kept_bytes(self) -> int:
        return sum(self.kept.values())

    @property
    def peak(self) -> int:
        """All that the device holds at once: with all weights there, stages run beside each other."""
        beside = max(self.peaks.encoding, self.peaks.starting, self.peaks.decoding)
        together = beside + self.peaks.stepping if self.memory is Memory.FULL else 0
        return self.kept_bytes + max(together, beside, self.peaks.stepping)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.memory", description=__doc__)
    parser.add_argument("--side", type=int, default=1024, help="pixels, a multiple of 16")
    parser.add_argument("--batch", type=int, default=1, help="pictures that share every step")
    options = parser.parse_args()
    if options.side < PIXELS_PER_PATCH or options.side % PIXELS_PER_PATCH:
        parser.error(f"--side {options.side}: not a positive multiple of {PIXELS_PER_PATCH}")
    if options.batch < 1:
        parser.error(f"--batch {options.batch}: not above 0")
    print(table(list(needs(Sizes.published(), side=options.side, batch=options.batch))), end="")


def needs(sizes: Sizes, *, side: int, batch: int) -> Iterator[Need]:
    """Yield every preset for `batch` pictures of `side` pixels squared, in bfloat16 and in fp8.

    Attention is torch's, which needs more than ours and may be chosen on a GPU (kernels/dispatch.py).
    """
    ops = replace(
        with_vendor_products(triton_ops()), attention=reference.attention, quantized_linear=_quantized_linear
    )
    for weights, quantization in QUANTIZATIONS.items():
        for memory in Memory:
            pipeline = weightless(sizes, memory, ops, quantization)
            encoders = {"CLIP": pipeline.clip.model, "T5": pipeline.t5.model}
            is_kept = memory is Memory.FULL
            kept = {
                "transformer": weight_bytes(pipeline.transformer),
                "autoencoder": weight_bytes(pipeline.autoencoder),
                **{name: weight_bytes(encoder) * is_kept for name, encoder in encoders.items()},
            }
            host = 0 if is_kept else arena_bytes(encoders.values())
            peaks = computed_peaks(pipeline, side=side, batch=batch)
            yield Need(weights, memory, host, kept, peaks)


def weightless(
    sizes: Sizes, memory: Memory, ops: Ops, quantization: Quantization = Quantization.NONE
) -> Pipeline:
    """Build a pipeline on the meta device."""
    return random_pipeline(
        sizes,
        ops,
        device=META,
        dtype=DTYPE,
        numerics=Numerics.FAST,
        quantization=quantization,
        memory=memory,
    )


def computed_peaks(pipeline: Pipeline, *, side: int, batch: int) -> Peaks:
    """Return the peaks of a weightless pipeline, counted instead of measured."""
    with simulating(HOPPER), caught(_swallow), Allocations() as allocations:
        return stage_peaks(pipeline, allocations.take_peak, side=side, batch=batch)


def stage_peaks(pipeline: Pipeline, take_peak: Callable[[], int], *, side: int, batch: int) -> Peaks:
    """Run each stage once, as the worker does; `take_peak` returns the peak in bytes since its last call."""
    take_peak()
    conditionings = pipeline.encode([Prompt(str(number), TXT_ROWS) for number in range(batch)])
    encoding = take_peak()
    kept = np.zeros((side, side), np.uint8)
    source = Source(np.zeros((side, side, 3), np.uint8), strength=1.0, mask=kept)  # which takes the most
    samples = [
        pipeline.start(
            conditioning=conditioning,
            negative=None,
            width=side,
            height=side,
            steps=STEPS,
            seed=0,
            guidance_scale=0.0,
            source=source,
        )
        for conditioning in conditionings
    ]
    starting = take_peak()
    pipeline.denoise_step(samples)
    stepping = take_peak()
    pipeline.decode(samples[:1])
    return Peaks(encoding, starting, stepping, take_peak())


def arena_bytes(modules: Iterable[nn.Module]) -> int:
    """Return what the weights of modules take in host memory."""
    with META:
        arena = Arena(pinned=False)
        for module in modules:
            for parameter in module.parameters():
                arena.empty(parameter.shape, parameter.dtype)
    return arena.size_bytes


def table(found: Sequence[Need]) -> str:
    """Return a Markdown table in GB of 10^9 bytes."""
    stages = ("encoding", "a source", "a step", "decoding", "peak", "fits")
    heads = ("weights", "`--memory`", *found[0].kept, "host", *stages)
    lines: list[Sequence[str]] = [heads, ["---"] * len(heads)]
    for need in found:
        peaks = (need.peaks.encoding, need.peaks.starting, need.peaks.stepping, need.peaks.decoding)
        sizes = (*need.kept.values(), need.host, *(need.kept_bytes + peak for peak in peaks), need.peak)
        lines.append(
            (need.weights, f"`{need.memory}`", *(f"{size / GB:.2f}" for size in sizes), fits(need.peak))
        )
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def fits(size_bytes: int) -> str:
    """Return the smallest common card that holds this, with what is left on it."""
    for card_gb in CARDS_GB:
        if (left := card_gb - size_bytes / GB) >= 0:
            return f"{card_gb} GB ({left:.1f} left)"
    return f"none up to {CARDS_GB[-1]} GB"


def _quantized_linear(
    x: Quantized, weight: Quantized, bias: Tensor, products: Sequence[int], out: Tensor | None
) -> Tensor:
    """Stand for the vendor's product of e4m3, which PyTorch does not have on the meta device."""
    return bias.new_empty(len(x), len(weight)) if out is None else out


def _swallow(kernel: object, args: object, options: object) -> None:
    pass


if __name__ == "__main__":
    main()
