"""The table of memory: weights to the byte, presets in order, peaks as a GPU has them."""

from pathlib import Path
from typing import Self

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from kernels.ops import reference_ops
from model.allocations import ROUNDING_BYTES
from model.checkpoint import open_checkpoint
from model.generate import EMBEDDED_MODEL
from model.layout import Numerics
from model.lending import Memory
from model.memory import (
    CARDS_GB,
    Need,
    Peaks,
    computed_peaks,
    fits,
    needs,
    stage_peaks,
    table,
    weightless,
)
from model.pipeline import Pipeline
from model.quantization import Quantization
from model.sizes import Sizes, weight_bytes

MIB = 1 << 20
README = Path(__file__).resolve().parents[2] / "README.md"


def embedded() -> Sizes:
    return open_checkpoint(EMBEDDED_MODEL).sizes


def load(device: str, memory: Memory = Memory.FULL) -> Pipeline:
    return Pipeline.load(
        EMBEDDED_MODEL,
        device=torch.device(device),
        dtype=torch.bfloat16,
        numerics=Numerics.FAST,
        memory=memory,
    )


def test_the_weights_are_those_of_the_loaded_model() -> None:
    loaded = load("cpu")
    modules = (loaded.transformer, loaded.autoencoder, loaded.clip.model, loaded.t5.model)
    full = next(needs(embedded(), side=64, batch=1))
    assert (full.weights, full.memory) == ("bfloat16", Memory.FULL)
    assert list(full.kept.values()) == [
        sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers())) for module in modules
    ]
    assert full.host == 0


def test_the_published_weights_have_the_published_sizes() -> None:
    pipeline = weightless(Sizes.published(), Memory.FULL, reference_ops())
    assert weight_bytes(pipeline.transformer) == 2 * 11_891_178_560
    assert weight_bytes(pipeline.autoencoder) == 2 * 83_819_683
    assert weight_bytes(pipeline.t5.model) == 2 * 4_762_310_656
    positions = 8 * 77
    assert weight_bytes(pipeline.clip.model) == 2 * 123_060_480 + positions


def test_fp8_is_a_byte_a_weight_and_a_scale_a_row() -> None:
    """A double block has 12 width^2 weights in 9 width rows for each stream, a single block 12 in 8."""
    plain, quantised = (
        weightless(Sizes.published(), Memory.FULL, reference_ops(), quantization).transformer
        for quantization in (Quantization.NONE, Quantization.WEIGHTS_AND_INPUTS)
    )
    width, double, single = 3072, 19, 38
    weights = (2 * 12 * double + 12 * single) * width**2
    rows = (2 * 9 * double + 8 * single) * width
    assert weight_bytes(quantised) == weight_bytes(plain) - weights + 4 * rows


@pytest.fixture(scope="module")
def published() -> list[Need]:
    return list(needs(Sizes.published(), side=1024, batch=1))


def test_the_readme_shows_what_is_computed(published: list[Need]) -> None:
    shown = README.read_text().split("<!-- memory: python -m model.memory -->\n")[1]
    assert shown.split("<!-- /memory -->")[0] == table(published), (
        "run `python -m model.memory` and paste what it prints"
    )


def test_each_preset_needs_less_of_the_device_than_the_one_before(published: list[Need]) -> None:
    for weights in ("bfloat16", "fp8"):
        full, balanced, low = (need for need in published if need.weights == weights)
        assert [need.memory for need in (full, balanced, low)] == list(Memory)
        assert low.peak <= balanced.peak <= full.peak
        assert low.kept_bytes == balanced.kept_bytes < full.kept_bytes
        assert low.host == balanced.host > full.host == 0
        for one, other in ((low, balanced), (balanced, full)):
            encoding = [each.kept_bytes + each.peaks.encoding for each in (one, other)]
            assert encoding[0] <= encoding[1] + MIB, "what is lent is rounded up"
            assert one.peaks.starting == other.peaks.starting
            assert one.peaks.stepping == other.peaks.stepping
            assert one.peaks.decoding == other.peaks.decoding


def test_what_is_lent_is_there_while_prompts_are_encoded(published: list[Need]) -> None:
    """All of both encoders, or two layers of T5, each 4 * 4096^2 + 3 * 4096 * 10240 weights and two norms."""
    full, balanced, low = published[:3]
    encoders = full.kept_bytes - balanced.kept_bytes
    assert balanced.peaks.encoding == pytest.approx(encoders + full.peaks.encoding, abs=MIB)
    layer = 2 * (4 * 4096**2 + 3 * 4096 * 10240 + 2 * 4096)
    assert low.peaks.encoding == pytest.approx(2 * layer + full.peaks.encoding, abs=MIB)


def test_a_larger_batch_needs_more() -> None:
    one, four = (next(needs(embedded(), side=256, batch=batch)).peaks for batch in (1, 4))
    assert 3 * one.stepping < four.stepping < 4 * one.stepping, "attention takes one picture at a time"
    assert one.encoding < four.encoding
    assert one.decoding < four.decoding < one.decoding + four.stepping, "one picture is decoded at a time"


def test_the_table_names_the_smallest_card_that_is_large_enough() -> None:
    assert fits(23_500_000_000) == "24 GB (0.5 left)"
    assert fits(24_000_000_001) == "32 GB (8.0 left)"
    assert fits(CARDS_GB[-1] * 10**9 + 1) == "none up to 141 GB"
    (_, _, row) = table(
        [Need("fp8", Memory.LOW, 10**7, {"a": 10**9, "b": 10**9}, Peaks(3, 10**8, 10**9, 5))]
    ).splitlines()
    assert (
        row == "| fp8 | `low` | 1.00 | 1.00 | 0.01 | 2.00 | 2.10 | 3.00 | 2.00 | 3.00 | 24 GB (21.0 left) |"
    )


class Measured:
    """The peaks of what this process really allocates for tensors, from torch's profiler."""

    def __init__(self) -> None:
        self.live_bytes = 0

    def __enter__(self) -> Self:
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.profiler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.profiler.stop()

    def take_peak(self) -> int:
        self.profiler.stop()
        peak_bytes = self.live_bytes
        events = self.profiler.profiler.kineto_results.events()
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                self.live_bytes += event.nbytes()
                peak_bytes = max(peak_bytes, self.live_bytes)
        self.__enter__()
        return peak_bytes


@pytest.mark.parametrize("memory", Memory)
def test_a_cpu_allocates_what_was_computed(memory: Memory) -> None:
    """But for what CUDA's allocator rounds up, and what only a CPU needs: scratch memory of attention, 1 % of
    a step, and the buffers of convolutions."""
    loaded = load("cpu", memory)
    lent = [*loaded.clip.model.parameters(), *loaded.t5.model.parameters()]
    with Measured() as process:
        measured = stage_peaks(loaded, process.take_peak, side=512, batch=2)
    computed = computed_peaks(weightless(embedded(), memory, loaded.ops), side=512, batch=2)
    assert 0 <= computed.encoding - measured.encoding < ROUNDING_BYTES * len(lent)
    assert computed.stepping == pytest.approx(measured.stepping, rel=0.02)
    assert computed.starting <= measured.starting
    assert computed.decoding <= measured.decoding


@pytest.mark.gpu
@pytest.mark.parametrize("memory", Memory)
def test_a_gpu_allocates_what_was_computed(memory: Memory) -> None:
    """At 1024x1024 and four pictures, so that activations are large beside what cannot be computed.

    That is the workspace of cuBLAS, 32 MiB on Hopper (cuBLAS documentation, cublasSetWorkspace), and while
    decoding those of cuDNN, for which nothing is stated: half as much again is allowed.
    """
    loaded = load("cuda", memory)
    kept = torch.cuda.memory_allocated()

    def take_peak() -> int:
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - kept
        torch.cuda.reset_peak_memory_stats()
        return peak

    stage_peaks(loaded, take_peak, side=1024, batch=4)  # compiles and makes what stays
    loaded.conditioning.clear()
    loaded.free()
    kept = torch.cuda.memory_allocated()
    measured = stage_peaks(loaded, take_peak, side=1024, batch=4)
    computed = computed_peaks(weightless(embedded(), memory, loaded.ops), side=1024, batch=4)
    for one, other, factor in (
        (measured.encoding, computed.encoding, 1.02),
        (measured.starting, computed.starting, 1.5),
        (measured.stepping, computed.stepping, 1.02),
        (measured.decoding, computed.decoding, 1.5),
    ):
        assert 0.98 * other - MIB <= one <= factor * other + 33 * MIB
