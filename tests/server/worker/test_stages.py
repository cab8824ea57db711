"""Steps that raise or run out of memory: what is at fault fails alone."""

import weakref
from collections.abc import Sequence

import msgspec
import pytest
import torch

from model.sampling import Sample
from server.protocol import Done, Failed, ToFront
from tests.server.worker.pipelines import (
    FakePipeline,
    FakeSample,
    Watched,
    images,
    pictures,
    run_through,
    running,
    watched,
)


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode"])
def test_a_picture_that_fails_in_a_stage_fails_alone(stage: str) -> None:
    with running(paused=True) as world:
        for name, prompt in (("good", "a"), ("bad", f"fail {stage}"), ("also good", "b")):
            world.submit(name, prompt)
        world.pipeline.gate.set()
        answers = world.answers(3)
        assert isinstance(answers["good"], Done)
        assert isinstance(answers["also good"], Done)
        assert isinstance(answers["bad"], Failed)
        assert answers["bad"].code == "generation_failed"
        assert stage not in answers["bad"].message, "what went wrong inside is for the log"


def test_a_picture_whose_latents_are_not_finite_fails_alone_and_before_it_is_decoded() -> None:
    def spoil(pipeline: Watched, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if sample.height == 272 and sample.step == 1:
                sample.latents[3, 5] = float("nan")

    *good, bad = images(3, steps=2, width=256, height=256)
    pipeline = watched(spoil)
    decoded: list[int] = []
    decode = pipeline.autoencoder.decode
    pipeline.autoencoder.decode = lambda latents: (decoded.append(latents.shape[2]), decode(latents))[1]
    spoiled = msgspec.structs.replace(bad, height=272)
    sent = run_through(pipeline, [*good, spoiled])
    assert set(pictures(sent)) == {"0", "1"}
    assert decoded == [32, 32]
    assert pictures(sent) == pictures(run_through(watched(lambda pipeline, samples: None), good))


class Activations:
    """Stands for the tensors of a step: large, and gone when nobody refers to them."""


def test_a_step_that_runs_out_of_memory_is_freed_before_fewer_pictures_run() -> None:
    left: list[weakref.ref[Activations]] = []

    class SmallDevice(FakePipeline):
        def denoise_step(self, samples: Sequence[FakeSample]) -> None:
            assert not any(each() for each in left), "the failed step still holds its memory"
            activations = Activations()
            left.append(weakref.ref(activations))
            if len(samples) > 1:
                raise torch.OutOfMemoryError("too many at once")
            super().denoise_step(samples)

    sent = run_through(SmallDevice(), images(3))
    assert [type(message) for message in sent if isinstance(message, Done | Failed)] == [Done] * 3


def test_a_step_is_halved_until_it_fits_and_the_pictures_stay_the_same() -> None:
    def at_most_two(pipeline: Watched, samples: Sequence[Sample]) -> None:
        if len(samples) > 2:
            raise torch.OutOfMemoryError("told to")

    requests = images(5, steps=1, width=256, height=256)
    small, large = watched(at_most_two), watched(lambda pipeline, samples: None)
    made = pictures(run_through(small, requests))
    assert small.calls == [5, "free", 2, 3, "free", 1, 2]
    assert made == pictures(run_through(large, requests))
    assert large.calls == [5]


def test_a_picture_that_does_not_fit_alone_fails_after_another_try_and_says_so() -> None:
    def not_of_two_steps(pipeline: Watched, samples: Sequence[Sample]) -> None:
        if any(len(sample.sigmas) == 3 for sample in samples):
            raise torch.OutOfMemoryError("told to")

    *good, bad = images(3, steps=1, width=256, height=272)
    pipeline = watched(not_of_two_steps)
    sent = run_through(pipeline, [*good, msgspec.structs.replace(bad, steps=2)])
    assert pipeline.calls == [3, "free", 1, 2, "free", 1, 1, "free", 1, "free"]
    assert set(pictures(sent)) == {"0", "1"}
    (failed,) = (message for message in sent if isinstance(message, Failed))
    assert (failed.id, failed.code) == ("2", "out_of_memory")
    assert failed.message == "the device has too little memory for a picture of 256x272"


def test_memory_that_is_free_after_all_is_enough() -> None:
    def before_it_was_freed(pipeline: Watched, samples: Sequence[Sample]) -> None:
        if "free" not in pipeline.calls:
            raise torch.OutOfMemoryError("told to")

    pipeline = watched(before_it_was_freed)
    assert len(pictures(run_through(pipeline, images(1, steps=1, width=256, height=256)))) == 1
    assert pipeline.calls == [1, "free", 1]


@pytest.mark.parametrize("bad", range(8))
def test_one_bad_picture_among_n_costs_two_runs_for_each_halving(bad: int) -> None:
    runs: list[int] = []

    class Strict(FakePipeline):
        def denoise_step(self, samples: Sequence[FakeSample]) -> None:
            runs.append(len(samples))
            if any(sample.seed == bad for sample in samples):
                raise RuntimeError("told to")
            super().denoise_step(samples)

    sent = run_through(Strict(), images(8, steps=1))
    assert len(runs) == 1 + 2 * 3
    assert sorted(runs) == [1, 1, 2, 2, 4, 4, 8]
    assert {message.id for message in sent if isinstance(message, Failed)} == {str(bad)}


def test_a_broken_device_ends_the_worker_and_fails_nobody() -> None:
    class BrokenDevice(FakePipeline):
        def denoise_step(self, samples: Sequence[FakeSample]) -> None:
            raise torch.AcceleratorError("an illegal memory access was encountered")

    sent: list[ToFront] = []
    with pytest.raises(torch.AcceleratorError):
        run_through(BrokenDevice(), images(2), sent)
    assert not any(isinstance(message, Failed) for message in sent)
