"""Contestants that make the same pictures in turn, timed stage by stage in one run.

What a machine does at a moment (its clock, its neighbours) is then the same for all, and only their ratios
are believed.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Protocol

import numpy as np
import torch

from kernels.machine import synchronize
from model.pipeline import Pixels

Clock = Callable[[], float]
Mark = Callable[[str], None]  # called when a stage is done, with its name


@dataclass(frozen=True, slots=True)
class Work:
    """Pictures that are wanted together: `sides` in pixels, all of them squares."""

    sides: tuple[int, ...]
    steps: int
    text_length: int

    def __str__(self) -> str:
        if len(set(self.sides)) == 1:
            return f"{self.sides[0]}x{self.sides[0]} batch {len(self.sides)}"
        return f"mixed {' '.join(map(str, self.sides))}"

    @property
    def prompts(self) -> list[str]:
        """One for each picture, no two of them alike."""
        return [f"a photo of {number} cats" for number in range(len(self.sides))]


class Contestant(Protocol):
    """Makes pictures from prompts."""

    @property
    def name(self) -> str: ...

    @property
    def weight_bytes(self) -> int:
        """All weights that it needs, shared with others or not."""

    def run(self, work: Work, mark: Mark) -> list[Pixels]:
        """Make the pictures of `work` up to their PNG files, seeded by their numbers; mark every stage."""


Failed = Callable[[Contestant, RuntimeError], None]


@dataclass(frozen=True, slots=True)
class Run:
    """The stages of one run in order, each with its seconds; there may be several of a name."""

    stages: tuple[tuple[str, float], ...]
    steps: int

    @property
    def total_s(self) -> float:
        return sum(seconds for _, seconds in self.stages)

    def stage_s(self, name: str) -> float:
        return sum(seconds for stage, seconds in self.stages if stage == name)

    @property
    def step_s(self) -> float:
        """One step of all pictures: the median of each group's steps, added up over groups."""
        seconds = [each for stage, each in self.stages if stage == "step"]
        groups = [seconds[first : first + self.steps] for first in range(0, len(seconds), self.steps)]
        return sum(median(group) for group in groups)


@dataclass(frozen=True, slots=True)
class Result:
    """What one contestant did; `peak_bytes` are its weights and the most it held beside them, on a GPU."""

    contestant: Contestant
    runs: tuple[Run, ...]
    pictures: tuple[Pixels, ...]
    peak_bytes: int | None

    def stage_s(self, name: str) -> float:
        """Return the median over the runs of all stages of this name."""
        return median(run.stage_s(name) for run in self.runs)

    def quantiles_s(self, of: Callable[[Run], float]) -> tuple[float, float, float]:
        """Return p20, p50 and p80 over the runs."""
        low, middle, high = np.quantile([of(run) for run in self.runs], [0.2, 0.5, 0.8])
        return float(low), float(middle), float(high)


def contest(
    contestants: Sequence[Contestant],
    work: Work,
    *,
    rounds: int,
    device: torch.device,
    failed: Failed,
    clock: Clock = time.perf_counter,
) -> list[Result]:
    """Let every contestant warm up, then run in turn, every other round in the opposite order.

    Whoever fails leaves, most often for want of memory, and `failed` is told.
    """

    def succeeds(contestant: Contestant, action: Callable[[], object]) -> bool:
        try:
            action()
        except torch.AcceleratorError:
            raise  # the device itself is lost
        except RuntimeError as failure:
            failed(contestant, failure)
        else:
            return True
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return False

    entries = [_Entry(contestant, work, device) for contestant in contestants]
    entries = [entry for entry in entries if succeeds(entry.contestant, entry.warm_up)]
    for number in range(rounds):
        order = entries[::-1] if number % 2 else entries
        left = [each for each in order if not succeeds(each.contestant, partial(each.run, clock))]
        entries = [each for each in entries if each not in left]
    return [entry.result() for entry in entries]


@dataclass(slots=True, eq=False)
class _Entry:
    """A contestant at one piece of work, and what it has done so far."""

    contestant: Contestant
    work: Work
    device: torch.device
    runs: list[Run] = field(default_factory=list)
    pictures: list[Pixels] = field(default_factory=list)
    peak_bytes: int | None = None

    def warm_up(self) -> None:
        """Run twice: the first compiles and records graphs, the second shows what is held at the peak."""
        on_gpu = self.device.type == "cuda"
        before = torch.cuda.memory_allocated(self.device) if on_gpu else 0
        self.contestant.run(self.work, _ignore)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        self.pictures = self.contestant.run(self.work, _ignore)
        if on_gpu:
            beside = torch.cuda.max_memory_allocated(self.device) - before
            self.peak_bytes = self.contestant.weight_bytes + beside

    def run(self, clock: Clock) -> None:
        """Run once more, timed."""
        marks: list[tuple[str, float]] = []

        def mark(stage: str) -> None:
            synchronize(self.device)
            marks.append((stage, clock()))

        mark("")
        self.contestant.run(self.work, mark)
        stages = tuple((stage, now - before) for (_, before), (stage, now) in pairwise(marks))
        self.runs.append(Run(stages, self.work.steps))

    def result(self) -> Result:
        return Result(self.contestant, tuple(self.runs), tuple(self.pictures), self.peak_bytes)


def _ignore(stage: str) -> None:
    pass
