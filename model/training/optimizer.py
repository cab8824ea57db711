"""Muon for matrices, Adam for everything else, and a running average of the weights.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) orthogonalises the momentum of each
matrix. On this model it gets in 12 minutes where Adam is after an hour.
"""

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from functools import partial

import torch
from torch import Tensor, nn

_MOMENTUM = 0.95
_BETAS = (0.9, 0.98)
_EPS = 1e-8
_TABLES = ("embed", "shared", "relative_attention_bias", "heads", "queries")  # looked up or read off: no maps
_QUINTIC = (3.4445, -4.7750, 2.0315)  # the coefficients of the post above
_HURRY = 20  # T5 knows no other positions and begins without them: at the common rate it is blind to order


class Optimizer:
    """Not torch's class: its state is a flat dictionary of tensors, so a run can be kept as one file."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        *,
        muon_rate: float,
        adam_rate: float,
        average: float,
    ) -> None:
        self.parameters = {name: p for name, p in parameters if p.requires_grad}
        self.muon_rate, self.adam_rate, self.average = muon_rate, adam_rate, average
        self.steps = 0
        self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second = {
            name: torch.zeros_like(p) for name, p in self.parameters.items() if not _is_matrix(name, p)
        }
        self.averaged = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, scale: float, executor: Executor) -> None:
        """Apply the gradients with both rates times `scale`, and clear them."""
        self.steps += 1
        _clip(self.parameters.values(), 1.0)
        largest_first = sorted(self.parameters, key=lambda name: -self.parameters[name].numel())
        list(executor.map(partial(self._update, scale), largest_first))

    @torch.no_grad()
    def _update(self, scale: float, name: str) -> None:
        parameter = self.parameters[name]
        if parameter.grad is None:
            return
        if name in self.second:
            hurry = _HURRY if "relative_attention_bias" in name else 1
            self._adam(name, parameter, parameter.grad, self.adam_rate * scale * hurry)
        else:
            self._muon(name, parameter, parameter.grad, self.muon_rate * scale)
        parameter.grad = None
        keep = min(self.average, self.steps / (self.steps + 10))
        self.averaged[name].lerp_(parameter, 1 - keep)

    def _adam(self, name: str, parameter: Tensor, grad: Tensor, rate: float) -> None:
        b1, b2 = _BETAS
        first, second = self.first[name].lerp_(grad, 1 - b1), self.second[name].lerp_(grad.square(), 1 - b2)
        spread = (second / (1 - b2**self.steps)).sqrt_().add_(_EPS)
        parameter.addcdiv_(first, spread, value=-rate / (1 - b1**self.steps))

    def _muon(self, name: str, parameter: Tensor, grad: Tensor, rate: float) -> None:
        momentum = self.first[name].lerp_(grad, 1 - _MOMENTUM)
        update = orthogonal(grad.lerp(momentum, _MOMENTUM).flatten(1)).view_as(parameter)
        rows, columns = parameter.flatten(1).shape
        parameter.mul_(1 - 0.01 * rate)
        parameter.add_(update, alpha=-rate * max(1.0, rows / columns) ** 0.5)

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, but the weights themselves."""
        groups = {"first": self.first, "second": self.second, "averaged": self.averaged}
        state = {f"{group}.{name}": t for group, tensors in groups.items() for name, t in tensors.items()}
        return state | {"steps": torch.tensor(self.steps)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.steps = int(state["steps"])
        for group, tensors in (("first", self.first), ("second", self.second), ("averaged", self.averaged)):
            for name, tensor in tensors.items():
                tensor.copy_(state[f"{group}.{name}"])


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.dim() >= 2 and not any(part in name for part in _TABLES)


def _clip(parameters: Iterable[nn.Parameter], limit: float) -> None:
    nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], limit)


def orthogonal(x: Tensor) -> Tensor:
    """Return nearly the closest semi-orthogonal matrix to `x` [m, n], by five Newton-Schulz steps."""
    a, b, c = _QUINTIC
    tall = x.shape[0] > x.shape[1]
    y = (x.t() if tall else x).bfloat16()
    y = y / (y.norm() + 1e-7)
    for _ in range(5):
        gram = y @ y.t()
        y = a * y + (b * gram + c * gram @ gram) @ y
    update: Tensor = (y.t() if tall else y).to(x.dtype)
    return update
