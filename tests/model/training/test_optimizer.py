from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from model.training.optimizer import Optimizer, orthogonal


@pytest.mark.parametrize("shape", [(32, 32), (16, 96), (96, 16)])
def test_an_update_of_a_matrix_has_all_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.5
    assert values.max() < 1.4


def fit(steps: int, optimizer: Optimizer, module: nn.Module) -> float:
    torch.manual_seed(1)
    x, target = torch.randn(64, 16), torch.randn(64, 8)
    with ThreadPoolExecutor(2) as executor:
        for _ in range(steps):
            loss = (module(x) - target).square().mean()
            loss.backward()
            optimizer.step(1.0, executor)
    return loss.item()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))


def test_it_learns_matrices_and_vectors() -> None:
    module = network()
    optimizer = Optimizer(module.named_parameters(), muon_rate=0.02, adam_rate=0.01, average=0.9)
    assert set(optimizer.second) == {"0.bias", "2.bias"}
    before = fit(1, optimizer, module)
    assert fit(200, optimizer, module) < 0.3 * before


def test_the_average_follows_the_weights() -> None:
    module = network()
    optimizer = Optimizer(module.named_parameters(), muon_rate=0.02, adam_rate=0.01, average=0.5)
    fit(20, optimizer, module)
    for name, parameter in module.named_parameters():
        distance = (optimizer.averaged[name] - parameter).abs().max()
        assert 0 < distance < 0.1


def test_a_run_goes_on_from_its_state_as_if_never_stopped() -> None:
    whole, first = network(), network()
    rates = {"muon_rate": 0.02, "adam_rate": 0.01, "average": 0.9}
    fit(10, Optimizer(whole.named_parameters(), **rates), whole)
    before = Optimizer(first.named_parameters(), **rates)
    fit(4, before, first)
    second = network()
    second.load_state_dict(first.state_dict())
    after = Optimizer(second.named_parameters(), **rates)
    after.load({name: tensor.clone() for name, tensor in before.state().items()})
    assert after.steps == 4
    fit(6, after, second)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
