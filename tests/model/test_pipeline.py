"""The pipeline's stages: caching, batching of prompts, and that a step is all or nothing."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels.rows import Owners
from model.conditioning import Prompt
from model.layout import Numerics
from model.pipeline import Pipeline, Pixels
from model.sampling import Sample
from tests.model.conftest import Oracle

TEXTS = ("a red circle", "two green stars above a tree", "")


def load(folder: Path, numerics: Numerics = Numerics.EXACT) -> Pipeline:
    return Pipeline.load(folder, device=torch.device("cpu"), dtype=torch.float32, numerics=numerics)


def begin(
    pipeline: Pipeline,
    text: str = "a cat",
    seed: int = 0,
    steps: int = 2,
    width: int = 256,
    guidance_scale: float = 0.0,
) -> Sample:
    (conditioning,) = pipeline.encode([Prompt(text, 64)])
    return pipeline.start(
        conditioning=conditioning,
        negative=conditioning if guidance_scale > 1 else None,
        width=width,
        height=256,
        steps=steps,
        seed=seed,
        guidance_scale=guidance_scale,
    )


def test_a_prompt_is_encoded_once(oracle: Oracle) -> None:
    pipeline = load(oracle()[1])
    first = pipeline.encode([Prompt("a cat", 64), Prompt("a cat", 64), Prompt("a dog", 64)])
    assert first[0] is first[1]
    assert (pipeline.conditioning.hits, pipeline.conditioning.misses) == (0, 2)
    assert pipeline.encode([Prompt("a cat", 64)])[0] is first[0]
    assert pipeline.conditioning.hits == 1


def test_prompts_of_one_length_are_encoded_as_one_batch_in_fast_numerics(oracle: Oracle) -> None:
    """Together and alone agree within rounding; in exact numerics they agree in every bit."""
    folder = oracle()[1]
    for numerics, tolerance in ((Numerics.FAST, 1e-5), (Numerics.EXACT, 0.0)):
        together = load(folder, numerics).encode([Prompt(text, 64) for text in TEXTS])
        alone = [load(folder, numerics).encode([Prompt(text, 64)])[0] for text in TEXTS]
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.txt, other.txt, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(one.pooled, other.pooled, rtol=tolerance, atol=tolerance)


def test_lengths_may_be_mixed(oracle: Oracle) -> None:
    pipeline = load(oracle()[1], Numerics.FAST)
    lengths = [len(each.txt) for each in pipeline.encode([Prompt("a", 64), Prompt("a", 32), Prompt("b", 64)])]
    assert lengths == [64, 32, 64]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_encoding_and_decoding_beside_the_steps_changes_no_bit(oracle: Oracle, device: str) -> None:
    folder = oracle()[1]
    pipeline = Pipeline.load(
        folder, device=torch.device(device), dtype=torch.float32, numerics=Numerics.EXACT
    )
    alone = [
        pipeline.generate([text], seeds=[0], width=256, height=256, steps=2, max_sequence_length=64)[0]
        for text in TEXTS
    ]
    pipeline.conditioning.free()
    ready: SimpleQueue[Sample | None] = SimpleQueue()

    waiting: SimpleQueue[Sample | None] = SimpleQueue()

    def encode_and_decode() -> list[Pixels]:
        decoded: list[Pixels] = []
        try:
            with pipeline.stream():
                for text in TEXTS * 4:
                    pipeline.conditioning.free()
                    sample = begin(pipeline, text)
                    pipeline.synchronize()
                    waiting.put(sample)
                    if (finished := ready.get()) is not None:
                        decoded += pipeline.decode([finished])
        finally:
            waiting.put(None)
        return decoded + pipeline.decode(list(iter(ready.get, None)))

    def denoise() -> None:
        ready.put(None)  # while the first is denoised the second is encoded
        try:
            with pipeline.stream():
                for sample in iter(waiting.get, None):
                    while not sample.finished:
                        pipeline.denoise_step([sample])
                    pipeline.synchronize()
                    ready.put(sample)
        finally:
            ready.put(None)

    with ThreadPoolExecutor(2) as threads:
        encoding, denoising = threads.submit(encode_and_decode), threads.submit(denoise)
    denoising.result()
    for made, expected in zip(encoding.result(), alone * 4, strict=True):
        np.testing.assert_array_equal(made, expected)


def test_samples_at_different_steps_and_sizes_share_a_step_and_stay_themselves(oracle: Oracle) -> None:
    pipeline = load(oracle()[1])
    alone = [begin(pipeline, seed=1, steps=3), begin(pipeline, seed=2, steps=1, width=384)]
    for sample in alone:
        while not sample.finished:
            pipeline.denoise_step([sample])
    ahead, late = begin(pipeline, seed=1, steps=3), begin(pipeline, seed=2, steps=1, width=384)
    pipeline.denoise_step([ahead])
    pipeline.denoise_step([late, ahead])
    pipeline.denoise_step([ahead])
    assert torch.equal(ahead.latents, alone[0].latents)
    assert torch.equal(late.latents, alone[1].latents)


def test_the_velocity_is_widened_only_where_passes_are_combined(oracle: Oracle) -> None:
    pipeline = Pipeline.load(
        oracle()[1], device=torch.device("cpu"), dtype=torch.bfloat16, numerics=Numerics.EXACT
    )
    euler_step, seen = pipeline.ops.euler_step, []

    def noted(latents: Tensor, velocity: Tensor, deltas: Tensor, owners: Owners) -> Tensor:
        seen.append((velocity.dtype, len(velocity)))
        return euler_step(latents, velocity, deltas, owners)

    pipeline.ops = replace(pipeline.ops, euler_step=noted)
    plain, guided = begin(pipeline), begin(pipeline, guidance_scale=3.0)
    pipeline.denoise_step([plain])
    pipeline.denoise_step([plain, guided])
    assert seen == [(torch.bfloat16, 256), (torch.float32, 512)]
    assert plain.latents.dtype == guided.latents.dtype == torch.float32


def test_a_step_that_fails_moves_no_sample(oracle: Oracle) -> None:
    pipeline = load(oracle()[1])
    good, bad = begin(pipeline, seed=1), begin(pipeline, seed=2)
    before = good.latents.clone()
    bad.latents = bad.latents[:-1]
    with pytest.raises(RuntimeError):
        pipeline.denoise_step([good, bad])
    assert good.step == bad.step == 0
    assert torch.equal(good.latents, before)


def test_an_empty_cache_bound_still_encodes(oracle: Oracle) -> None:
    pipeline = Pipeline.load(
        oracle()[1],
        device=torch.device("cpu"),
        dtype=torch.float32,
        numerics=Numerics.EXACT,
        conditioning_cache_bytes=0,
    )
    assert len(pipeline.encode([Prompt("a", 64)])[0].txt) == 64
    assert pipeline.conditioning.size_bytes == 0


def test_progress_ends_at_the_size_of_the_checkpoint(oracle: Oracle) -> None:
    seen: list[tuple[int, int]] = []
    Pipeline.load(
        oracle()[1],
        device=torch.device("cpu"),
        dtype=torch.float32,
        numerics=Numerics.EXACT,
        progress=lambda done, total: seen.append((done, total)),
    )
    done, total = zip(*seen, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[-1]


def test_a_picture_that_is_not_finite_is_an_error_and_not_black(oracle: Oracle) -> None:
    pipeline = load(oracle()[1])
    sample = begin(pipeline)
    sample.latents = sample.latents.clone()
    sample.latents[3, 5] = float("nan")
    with pytest.raises(ArithmeticError, match="not finite"):
        pipeline.decode([sample])
