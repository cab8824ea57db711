"""Lent weights: the same bits as weights that stay, never more of them than promised, and all back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.arena import BLOCK_BYTES
from model.conditioning import Prompt
from model.layout import Numerics
from model.lending import Lender, Memory
from model.pipeline import Pipeline
from tests.model.conftest import Oracle

CPU = torch.device("cpu")
PROMPTS = [Prompt("a red circle", 64), Prompt("two green stars", 64), Prompt("a tree", 32)]
lent_presets = pytest.mark.parametrize("memory", [Memory.BALANCED, Memory.LOW])


def load(folder: Path, memory: Memory, numerics: Numerics = Numerics.FAST) -> Pipeline:
    return Pipeline.load(folder, device=CPU, dtype=torch.float32, numerics=numerics, memory=memory)


def weights(module: nn.Module) -> list[Tensor]:
    """Every parameter and buffer at every place that has one."""
    return [
        *(tensor for _, tensor in module.named_parameters(remove_duplicate=False)),
        *(tensor for _, tensor in module.named_buffers(remove_duplicate=False)),
    ]


def count_away(groups: Sequence[nn.Module], homes: list[list[Tensor]]) -> int:
    """How many groups have something else in place of what they have at home, and then of all of it."""
    away = [
        {now is not home for now, home in zip(weights(group), before, strict=True)}
        for group, before in zip(groups, homes, strict=True)
    ]
    assert all(len(each) == 1 for each in away), "a group is lent as a whole"
    return sum(each.pop() for each in away)


@lent_presets
@pytest.mark.parametrize("numerics", Numerics)
def test_every_preset_encodes_the_same_bits(oracle: Oracle, memory: Memory, numerics: Numerics) -> None:
    folder = oracle()[1]
    kept = load(folder, Memory.FULL, numerics).encode(PROMPTS)
    lent = load(folder, memory, numerics).encode(PROMPTS)
    for one, other in zip(kept, lent, strict=True):
        assert torch.equal(one.txt, other.txt)
        assert torch.equal(one.pooled, other.pooled)


@lent_presets
def test_the_preset_changes_nothing_else(oracle: Oracle, memory: Memory) -> None:
    folder = oracle()[1]
    full, other = load(folder, Memory.FULL), load(folder, memory)
    assert other.info == full.info
    for encoder, same in ((other.clip, full.clip), (other.t5, full.t5)):
        for home, kept in zip(weights(encoder.model), weights(same.model), strict=True):
            assert torch.equal(home, kept)


def test_homes_are_blocks_of_host_memory_that_both_encoders_share(oracle: Oracle) -> None:
    pipeline = load(oracle()[1], Memory.LOW)
    blocks = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for encoder in (pipeline.clip, pipeline.t5)
        for parameter in encoder.model.parameters()
    }
    assert list(blocks.values()) == [BLOCK_BYTES]


@pytest.mark.parametrize("name", ["clip", "t5"])
def test_at_most_two_layers_of_an_encoder_are_on_the_device(oracle: Oracle, name: str) -> None:
    """Counted by the tensors that stand where others are at home, each time that a layer has run."""
    encoder = getattr(load(oracle()[1], Memory.LOW), name)
    layers = encoder.lender.groups
    homes = [weights(layer) for layer in layers]
    seen: list[int] = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: seen.append(count_away(layers, homes)))
    with encoder.lender.lending():
        encoder.model(input_ids=torch.zeros(1, 8, dtype=torch.long))
    assert seen == [2] * (len(layers) - 1) + [1], "the one that runs and the next one"
    assert count_away(layers, homes) == encoder.lender.lent == 0


def test_balanced_copies_an_encoder_once_for_all_prompts_of_a_step(oracle: Oracle) -> None:
    pipeline = load(oracle()[1], Memory.BALANCED, Numerics.EXACT)
    home, seen = pipeline.t5.model.shared.weight, []
    pipeline.t5.model.register_forward_hook(lambda model, *_: seen.append(model.shared.weight))
    pipeline.encode(PROMPTS)
    assert len(seen) == len(PROMPTS), "exact numerics encode each alone"
    assert all(weight is seen[0] for weight in seen)
    assert seen[0] is not home
    assert pipeline.t5.model.shared.weight is home


@contextmanager
def running_out_of_memory(layer: nn.Module) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("told to")

    hook = layer.register_forward_hook(fail)
    try:
        yield
    finally:
        hook.remove()


@lent_presets
def test_everything_is_back_after_a_layer_raised(oracle: Oracle, memory: Memory) -> None:
    pipeline = load(oracle()[1], memory)
    expected = load(oracle()[1], Memory.FULL).encode(PROMPTS)
    models = (pipeline.clip.model, pipeline.t5.model)
    homes = [weights(model) for model in models]
    with running_out_of_memory(pipeline.t5.model.encoder.block[0]), pytest.raises(torch.OutOfMemoryError):
        pipeline.encode(PROMPTS)
    assert pipeline.clip.lender.lent == pipeline.t5.lender.lent == 0
    for model, home in zip(models, homes, strict=True):
        assert all(now is before for now, before in zip(weights(model), home, strict=True))
    for one, other in zip(pipeline.encode(PROMPTS), expected, strict=True):
        assert torch.equal(one.txt, other.txt)


def test_a_group_that_does_not_fit_stays_at_home_as_a_whole() -> None:
    group = nn.Module()
    group.small = nn.Parameter(torch.ones(2))
    group.huge = nn.Parameter(torch.empty(1 << 60, device="meta"))
    homes = weights(group)
    lender = Lender([group], CPU)
    with pytest.raises(RuntimeError, match="allocate"), lender.lending():
        group(None)
    assert weights(group)[0] is homes[0]
    assert lender.lent == 0


class Tied(nn.Module):
    """The same weight at two places, and a buffer that is part of the result."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.down.weight = self.up.weight
        self.offset = nn.Buffer(torch.arange(3.0))

    def forward(self, x: Tensor) -> Tensor:
        """Apply one weight twice."""
        assert self.up.weight is self.down.weight, "tied tensors are one tensor"
        return self.down(self.up(x)) + self.offset


def test_tied_weights_stay_tied_and_buffers_come_along() -> None:
    module, x = Tied(), torch.ones(2, 3)
    expected, homes = module(x), weights(module)
    lender = Lender([module], CPU)
    with lender.lending():
        assert torch.equal(module(x), expected)
        assert all(now is not home for now, home in zip(weights(module), homes, strict=True))
    assert all(now is home for now, home in zip(weights(module), homes, strict=True))


def test_a_module_that_runs_outside_of_lending_is_a_mistake() -> None:
    module = Tied()
    Lender([module], CPU)
    with pytest.raises(AssertionError, match="Tied runs outside of `lending`"):
        module(torch.ones(2, 3))


@pytest.mark.gpu
def test_streams_of_a_gpu_never_mix_layers_up() -> None:
    """Layers large enough that their copies take longer than the host needs to queue all of them."""
    count, width = 12, 4096
    stack = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(count)))
    for layer in stack:
        layer.weight = nn.Parameter(
            (torch.randn(width, width) / width**0.5).pin_memory(), requires_grad=False
        )
    layer_bytes = width * width * 4
    device = torch.device("cuda")
    x = torch.randn(256, width, device=device)
    with torch.inference_mode():
        expected = x
        for layer in stack:
            expected = F.linear(expected, layer.weight.to(device))
        lender = Lender(list(stack), device)
        for _ in range(20):
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with lender.lending():
                found = stack(x)
            torch.cuda.synchronize()
            assert torch.equal(found, expected)
            activations = 3 * x.nbytes
            assert torch.cuda.max_memory_allocated() - before <= 2 * layer_bytes + activations + (64 << 20)
