"""Weights that live in host memory and are on the device only while they are used.

A module's weights are lent to the device in groups: one group, the whole module, or its layers in the order
in which they run. A group is copied when it is about to run and dropped when another one is; what lies in
host memory never changes, so nothing is ever copied back. While a group runs, the next one is copied.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial

import torch
from torch import Tensor, nn


class Memory(StrEnum):
    """Where the text encoders are.

    FULL: on the device. BALANCED: in host memory, on the device while prompts are encoded.
    LOW: in host memory, at most two layers of each on the device while prompts are encoded.
    """

    FULL = "full"
    BALANCED = "balanced"
    LOW = "low"

    def groups(self, whole: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
        """Return what is lent at a time of a module whose `layers` run in this order."""
        match self:
            case Memory.FULL:
                return []
            case Memory.BALANCED:
                return [whole]
            case Memory.LOW:
                return list(layers)


class Lender:
    """Lends the weights of some modules to a device, inside `lending` only.

    The copies are memory of the stream that computes: what is dropped may be handed out again at once, since
    all that reads it was queued before. Copies run on a stream of their own, which waits for what was queued
    when they begin; whoever reads a copy or drops it waits for its end. So no memory is written while it is
    read, and at most two groups are on the device even though the host runs ahead of it.
    """

    def __init__(self, groups: Sequence[nn.Module], device: torch.device) -> None:
        """Take charge of loaded modules in the order in which they run; of none, and nothing ever moves."""
        self.device = device
        self.groups = tuple(groups)
        self._weights = [_Weights(module) for module in groups]
        self._lent: dict[int, torch.cuda.Event | None] = {}  # by index: when the copy is there
        self._stream: torch.cuda.Stream | None = None
        if groups and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._is_lending = False
        for index, module in enumerate(groups):
            module.register_forward_pre_hook(partial(self._use, index))

    @property
    def lent(self) -> int:
        """How many groups are on the device."""
        return len(self._lent)

    @contextmanager
    def lending(self) -> Iterator[None]:
        """Inside, modules may run; at its end everything is back, also when it is left by an exception."""
        self._is_lending = True
        try:
            yield
        finally:
            self._is_lending = False
            self._give_back_all_but(())

    def _use(self, index: int, module: nn.Module, args: object) -> None:
        """Have a group on the device, now that its module runs, and the next one on its way."""
        assert self._is_lending, f"{type(module).__name__} runs outside of `lending`"
        self._give_back_all_but((index, index + 1))
        self._lend(index)
        self._wait(index)
        if index + 1 < len(self.groups):
            self._lend(index + 1)

    def _lend(self, index: int) -> None:
        if index in self._lent:
            return
        copies = self._weights[index].install_copies(self.device)
        self._lent[index] = None
        if self._stream is None:
            _copy(copies)
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            _copy(copies)
            self._lent[index] = self._stream.record_event()

    def _give_back_all_but(self, kept: Sequence[int]) -> None:
        for index in [index for index in self._lent if index not in kept]:
            self._wait(index)  # its memory may be another tensor's next
            self._weights[index].remove_copies()
            del self._lent[index]

    def _wait(self, index: int) -> None:
        """Let what is queued from now on begin after the copy."""
        if (copied := self._lent[index]) is not None:
            torch.cuda.current_stream(self.device).wait_event(copied)


class _Weights:
    """The parameters and buffers of a group, at all the places that refer to them."""

    def __init__(self, module: nn.Module) -> None:
        self._places = [
            (owner, name, tensor)
            for owner in module.modules()
            for named in (owner.named_parameters, owner.named_buffers)
            for name, tensor in named(recurse=False, remove_duplicate=False)
        ]

    def install_copies(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Put tensors of the device in place of those at home, tied ones once; return each beside its home.

        They have no values yet.
        """
        homes = {id(home): home for _, _, home in self._places}
        copies = {key: _empty_like(home, device) for key, home in homes.items()}
        for owner, name, home in self._places:  # only now that all of them have memory
            setattr(owner, name, copies[id(home)])
        return [(copies[key], home) for key, home in homes.items()]

    def remove_copies(self) -> None:
        """Put what is at home back into its places."""
        for owner, name, home in self._places:
            setattr(owner, name, home)


def _empty_like(home: Tensor, device: torch.device) -> Tensor:
    copy = torch.empty_like(home, device=device)
    return nn.Parameter(copy, requires_grad=False) if isinstance(home, nn.Parameter) else copy


@torch.no_grad()
def _copy(copies: Sequence[tuple[Tensor, Tensor]]) -> None:
    for copy, home in copies:
        copy.copy_(home, non_blocking=True)
