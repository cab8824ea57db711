"""Random adapters, and the files that the tools of each key style would write of them."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.names import diffusers_transformer
from model.transformer import Transformer

Matrices = dict[str, tuple[Tensor, Tensor]]  # down [rank, in] and up [out, rank] by the layer
State = dict[str, Tensor]
SIZE = 0.3  # of what a change adds, beside what the layer itself gives


def fused(transformer: Transformer, *, rank: int = 3, seed: int = 0) -> Matrices:
    """Return a change of every linear of a transformer, by its original name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _change(module.in_features, module.out_features, rank, generator)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
    }


def split(transformer: Transformer, *, rank: int = 3, seed: int = 0) -> Matrices:
    """Return a change of every linear by diffusers' names, with an inner product of its own for each."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: _change(down.shape[1], len(up), rank + number % 2, generator)
        for number, (name, (down, up)) in enumerate(as_diffusers(fused(transformer, rank=1)).items())
    }


def as_diffusers(changes: Matrices) -> Matrices:
    """Return the same changes by diffusers' names: q, k and v share the inner product that they have."""
    found: Matrices = {}
    for layer, (down, up) in changes.items():
        recipe = diffusers_transformer(f"{layer}.weight")
        own = torch.cat(up.chunk(2)[::-1]) if recipe.swap_halves else up
        heads = [down.shape[1]] * min(3, len(recipe.parts) - 1)
        sizes = [*heads, len(own) - sum(heads)]
        for (name,), part in zip(recipe.parts, own.split(sizes), strict=True):
            found[name.removesuffix(".weight")] = (down, part)
    return found


def scaled(changes: Matrices, factor: float) -> Matrices:
    return {name: (down, factor * up) for name, (down, up) in changes.items()}


def peft(changes: Matrices) -> State:
    return _state(changes, "transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight")


def peft_export(changes: Matrices) -> State:
    return _state(changes, "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight")


def oldest_diffusers(changes: Matrices) -> State:
    return _state(changes, "transformer.{}.lora.down.weight", "transformer.{}.lora.up.weight")


def comfyui(changes: Matrices) -> State:
    return _state(changes, "diffusion_model.{}.lora_A.weight", "diffusion_model.{}.lora_B.weight")


def comfyui_down_up(changes: Matrices) -> State:
    return _state(changes, "diffusion_model.{}.lora_down.weight", "diffusion_model.{}.lora_up.weight")


def kohya(changes: Matrices) -> State:
    return _state(_underscored(changes), "lora_unet_{}.lora_down.weight", "lora_unet_{}.lora_up.weight")


def onetrainer(changes: Matrices) -> State:
    return _state(
        _underscored(changes), "lora_transformer_{}.lora_down.weight", "lora_transformer_{}.lora_up.weight"
    )


def xlabs(changes: Matrices) -> State:
    """Those changes that XLabs' processors have."""
    names = {}
    for layer, matrices in changes.items():
        block, _, rest = (
            layer.rpartition(".img_attn.") if ".img_attn." in layer else layer.rpartition(".txt_attn.")
        )
        if block.startswith("double_blocks."):
            names[f"{block}.processor.{rest}_lora{1 if '.img_attn.' in layer else 2}"] = matrices
        elif layer.endswith(".linear1"):
            down, up = matrices
            names[f"{layer.removesuffix('.linear1')}.processor.qkv_lora"] = (down, up[: 3 * down.shape[1]])
        elif layer.endswith(".linear2"):
            names[f"{layer.removesuffix('.linear2')}.processor.proj_lora"] = matrices
    return _state(names, "{}.down.weight", "{}.up.weight")


def alphas(state: State, alpha: float) -> State:
    """Return `state` with an alpha beside every change."""
    modules = {name.rsplit(".", 2)[0].removesuffix(".lora") for name in state}
    return state | {f"{module}.alpha": torch.tensor(alpha) for module in modules}


def write(path: Path, state: State, metadata: dict[str, object] | None = None) -> Path:
    """Write a file, with PEFT's configuration in its header if it is given."""
    header = None if metadata is None else {"lora_adapter_metadata": json.dumps(metadata)}
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path, metadata=header)
    return path


def _change(inputs: int, outputs: int, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
    return down, SIZE * torch.randn(outputs, rank, generator=generator) / rank**0.5


def _underscored(changes: Matrices) -> Matrices:
    return {name.replace(".", "_"): matrices for name, matrices in changes.items()}


def _state(changes: Matrices, down_name: str, up_name: str) -> State:
    state = {}
    for name, (down, up) in changes.items():
        state[down_name.format(name)] = down
        state[up_name.format(name)] = up
    return state


Style = Callable[[Matrices], State]
