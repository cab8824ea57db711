"""Who runs when, what is made of the times, and what happens to those who fail."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from model.bench.contest import Contestant, Failed, Mark, Result, Run, Work, contest
from model.pipeline import Pixels

CPU = torch.device("cpu")
WORK = Work((64, 64), steps=3, text_length=16)


class Painter:
    """Takes the seconds that it is told for every stage, on a clock of its own making."""

    weight_bytes = 0

    def __init__(self, name: str, said: list[str], wait: Callable[[float], None], **seconds: float) -> None:
        self.name = name
        self.said = said
        self.wait = wait
        self.seconds = {"text": 1.0, "start": 0.0, "step": 2.0, "decode": 4.0, "png": 8.0} | seconds

    def run(self, work: Work, mark: Mark) -> list[Pixels]:
        self.said.append(self.name)
        for stage in ("text", "start", *["step"] * work.steps, "decode", "png"):
            self.wait(self.seconds[stage])
            mark(stage)
        return [np.zeros((side, side, 3), np.uint8) for side in work.sides]


class Failing(Painter):
    """Does `good` runs and fails at the next."""

    def __init__(self, name: str, said: list[str], *, good: int, failure: Exception) -> None:
        super().__init__(name, said, lambda seconds: None)
        self.good = good
        self.failure = failure

    def run(self, work: Work, mark: Mark) -> list[Pixels]:
        if self.good == 0:
            raise self.failure
        self.good -= 1
        return super().run(work, mark)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


def nobody_fails(contestant: Contestant, failure: RuntimeError) -> None:
    pytest.fail(f"{contestant.name}: {failure}")


def held(contestants: list[Painter], *, rounds: int = 2, failed: Failed = nobody_fails) -> list[Result]:
    return contest(contestants, WORK, rounds=rounds, device=CPU, failed=failed)


def test_all_warm_up_twice_and_then_run_in_turn_and_in_turn_backwards() -> None:
    said: list[str] = []
    held([Painter(name, said, lambda seconds: None) for name in "ab"], rounds=3)
    assert "".join(said) == "aabb" + "ab" + "ba" + "ab"


def test_every_stage_gets_the_time_until_its_mark() -> None:
    clock = Clock()
    painter = Painter("a", [], clock.wait)
    (result,) = contest([painter], WORK, rounds=1, device=CPU, failed=nobody_fails, clock=clock)
    (run,) = result.runs
    assert [stage for stage, _ in run.stages] == ["text", "start", "step", "step", "step", "decode", "png"]
    assert (run.total_s, run.step_s) == (1 + 3 * 2 + 4 + 8, 2)
    assert [result.stage_s(stage) for stage in ("text", "decode", "png")] == [1, 4, 8]
    assert [picture.shape for picture in result.pictures] == [(64, 64, 3)] * 2
    assert result.peak_bytes is None


def test_a_step_of_groups_that_take_turns_is_the_sum_of_their_median_steps() -> None:
    stages = [("step", seconds) for seconds in (9.0, 1.0, 1.0, 5.0, 2.0, 2.0)]
    assert Run(tuple(stages), steps=3).step_s == 1 + 2


def test_quantiles_are_over_runs() -> None:
    runs = tuple(Run((("step", float(seconds)),), steps=1) for seconds in range(11))
    result = Result(Painter("a", [], lambda seconds: None), runs, (), None)
    assert result.quantiles_s(lambda run: run.step_s) == (2, 5, 8)


@pytest.mark.parametrize("good", [0, 1, 2, 3])
def test_who_fails_leaves_and_the_others_go_on(good: int) -> None:
    said: list[str] = []
    failures: list[tuple[str, str]] = []
    contestants = [
        Failing("large", said, good=good, failure=torch.OutOfMemoryError("no memory")),
        Painter("small", said, lambda seconds: None),
    ]
    results = held(
        contestants, rounds=3, failed=lambda who, failure: failures.append((who.name, str(failure)))
    )
    assert failures == [("large", "no memory")]
    assert said.count("large") == good
    assert [(result.contestant.name, len(result.runs)) for result in results] == [("small", 3)]


@pytest.mark.parametrize("failure", [torch.AcceleratorError("the device is lost"), AssertionError("a bug")])
def test_what_nobody_can_go_on_from_ends_the_run(failure: Exception) -> None:
    with pytest.raises(type(failure)):
        held([Failing("broken", [], good=1, failure=failure)])


@pytest.mark.parametrize(
    ("sides", "named"),
    [((1024,), "1024x1024 batch 1"), ((256, 256), "256x256 batch 2"), ((256, 384), "mixed 256 384")],
)
def test_work_is_named_by_its_sizes_and_every_picture_has_its_own_prompt(
    sides: tuple[int, ...], named: str
) -> None:
    work = Work(sides, steps=4, text_length=16)
    assert str(work) == named
    assert len(set(work.prompts)) == len(sides)
