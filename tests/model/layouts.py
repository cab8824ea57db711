"""The same weights in every published layout, written the way the tools of each layout write them."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.autoencoder import Autoencoder
from model.checkpoint import open_checkpoint
from model.names import Naming, diffusers_autoencoder, diffusers_transformer
from model.transformer import Transformer

State = dict[str, Tensor]


def original_transformer_state(folder: Path) -> State:
    """Return the transformer of a diffusers folder under its original names."""
    stored = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    with torch.device("meta"):
        module = Transformer(open_checkpoint(folder).transformer_config)
    return _renamed(stored, module.state_dict(), diffusers_transformer)


def original_autoencoder_state(folder: Path) -> State:
    """Return the autoencoder under its original names, attention as 1x1 convolutions."""
    stored = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    with torch.device("meta"):
        module = Autoencoder(open_checkpoint(folder).autoencoder_config)
    state = _renamed(stored, module.state_dict(), diffusers_autoencoder(4))
    return {
        name: tensor[:, :, None, None] if ".attn_1." in name and tensor.dim() == 2 else tensor
        for name, tensor in state.items()
    }


def write_original(source: Path, folder: Path, change: Callable[[State], State] = dict) -> Path:
    """Write an original folder: two files, and the text encoders and tokenizers beside them."""
    folder.mkdir()
    save_file(change(original_transformer_state(source)), folder / "anything.safetensors")
    save_file(original_autoencoder_state(source), folder / "ae.safetensors")
    for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        shutil.copytree(source / name, folder / name)
    return folder


def write_all_in_one(source: Path, folder: Path) -> Path:
    """Write one file with all components, as ComfyUI checkpoints have them; tokenizers stand beside it."""
    folder.mkdir()
    parts = {
        "model.diffusion_model.": original_transformer_state(source),
        "vae.": original_autoencoder_state(source),
        "text_encoders.clip_l.transformer.": load_file(source / "text_encoder" / "model.safetensors"),
        "text_encoders.t5xxl.transformer.": load_file(source / "text_encoder_2" / "model.safetensors"),
    }
    state = {prefix + name: tensor for prefix, part in parts.items() for name, tensor in part.items()}
    state["text_encoders.clip_l.logit_scale"] = torch.tensor(1.0)
    state["text_encoders.clip_l.transformer.text_projection.weight"] = torch.eye(4)
    save_file(state, folder / "checkpoint.safetensors")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(source / name, folder / name)
    return folder / "checkpoint.safetensors"


def write_sharded(source: Path, folder: Path) -> Path:
    """Write a diffusers folder whose transformer is cut into three files with an index."""
    shutil.copytree(source, folder)
    whole = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(whole)
    whole.unlink()
    names = sorted(state)
    weight_map = {
        name: f"diffusion_pytorch_model-0000{1 + i % 3}-of-00003.safetensors" for i, name in enumerate(names)
    }
    for file in set(weight_map.values()):
        save_file({name: state[name] for name in names if weight_map[name] == file}, whole.parent / file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (whole.parent / f"{whole.name}.index.json").write_text(json.dumps(index))
    return folder


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


def cast(dtype: torch.dtype) -> Callable[[State], State]:
    return lambda state: {name: tensor.to(dtype) for name, tensor in state.items()}


def mixed(state: State) -> State:
    """Every third tensor in another dtype."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    return {name: tensor.to(dtypes[i % 3]) for i, (name, tensor) in enumerate(state.items())}


def newer_norm_names(state: State) -> State:
    return {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in state.items()}


def scaled_fp8(spelling: str) -> Callable[[State], State]:
    """Matrices in float8 with one scale each, in the older or the newer ComfyUI spelling."""

    def change(state: State) -> State:
        changed: State = {}
        for name, tensor in state.items():
            if tensor.dim() < 2:
                changed[name] = tensor
                continue
            scale = tensor.abs().max() / 448
            module = name.removesuffix(".weight")
            changed[name] = (tensor / scale).to(torch.float8_e4m3fn)
            changed[f"{module}.{spelling}"] = scale
            if spelling == "scale_weight":
                changed[f"{module}.scale_input"] = torch.tensor(1.0)
            else:
                text = json.dumps({"format": "float8_e4m3fn"}).encode()
                changed[f"{module}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
        if spelling == "scale_weight":
            changed["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
        return changed

    return change


def _renamed(stored: State, names: Iterable[str], naming: Naming) -> State:
    state = {}
    for name in names:
        recipe = naming(name)
        tensor = torch.cat([stored[part[0]] for part in recipe.parts])
        state[name] = torch.cat(tensor.chunk(2)[::-1]) if recipe.swap_halves else tensor
    return state
