import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from model.training.optimizer import Optimizer
from model.training.run import PARTS, Draws, run, schedule


def module_and_optimizer() -> tuple[nn.Linear, Optimizer]:
    torch.manual_seed(0)
    module = nn.Linear(4, 3)
    return module, Optimizer(module.named_parameters(), muon_rate=0.01, adam_rate=0.01, average=0.9)


def train(file: Path, *, stop_at: int | None = None) -> nn.Linear:
    module, optimizer = module_and_optimizer()

    def loss(draws: Draws) -> Tensor:
        if optimizer.steps == stop_at:
            raise KeyboardInterrupt
        out: Tensor = module(draws.normal(8, 4)).square().mean()
        return out

    run("test", file, module, optimizer, 12, loss)
    return module


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model.training.run.KEEP_EVERY_S", 0)
    whole = train(tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped.safetensors", stop_at=7)
    resumed = train(tmp_path / "stopped.safetensors")
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_finished_run_is_read_and_not_run_again(tmp_path: Path) -> None:
    file = tmp_path / "run.safetensors"
    first = train(file)
    module, optimizer = module_and_optimizer()

    def never(draws: Draws) -> Tensor:
        raise AssertionError("trained again")

    run("test", file, module, optimizer, 12, never)
    for a, b in zip(first.parameters(), module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_parts_of_a_batch_run_side_by_side_and_count_alike(tmp_path: Path) -> None:
    module, optimizer = module_and_optimizer()
    together = threading.Barrier(PARTS, timeout=30)
    constants = iter([2.0, 4.0])

    def loss(draws: Draws) -> Tensor:
        together.wait()
        return module.bias.sum() * next(constants)

    before = module.bias.detach().clone()
    seen: list[Tensor] = []
    module.bias.register_hook(lambda grad: seen.append(grad.clone()))
    run("test", tmp_path / "run.safetensors", module, optimizer, 1, loss)
    assert not torch.equal(before, module.bias)
    assert sorted(float(grad[0]) for grad in seen) == [2.0, 4.0]


def test_draws_depend_on_step_and_part_alone() -> None:
    assert torch.equal(Draws.of(3, 1).normal(4), Draws.of(3, 1).normal(4))
    drawn = {tuple(Draws.of(step, part).normal(2).tolist()) for step in range(4) for part in range(PARTS)}
    assert len(drawn) == 4 * PARTS


def test_the_schedule_rises_stays_and_falls() -> None:
    values = [schedule(step, 1000) for step in range(1000)]
    assert values[0] == pytest.approx(1 / 50)
    assert values[100] == values[399] == pytest.approx(1)
    assert values[999] < 0.03
    assert values[400:] == sorted(values[400:], reverse=True)
