"""The JSON configurations of a diffusers folder, read into ours; every wrong value is named with its file."""

from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPTextConfig, T5Config

from model.bundle import read_json
from model.config import AutoencoderConfig, ScheduleConfig, TransformerConfig
from model.safetensors_file import CheckpointError

Number = TypeVar("Number", int, float, bool)
TextConfig = TypeVar("TextConfig", CLIPTextConfig, T5Config)


def transformer_config(path: Path) -> TransformerConfig:
    """Read `transformer/config.json`; older ones lack the RoPE axes, which are then the published ones."""
    config = read_config(path)
    heads = _value(config, path, "num_attention_heads", 24)
    head_dim = _value(config, path, "attention_head_dim", 128)
    axes = config.get("axes_dims_rope", [16, 56, 56])
    if (
        not isinstance(axes, list)
        or len(axes) != 3
        or not all(type(axis) is int and axis > 0 and axis % 2 == 0 for axis in axes)
        or sum(axes) != head_dim
    ):
        raise CheckpointError(
            f"{path}: axes_dims_rope {axes} is not three even numbers that sum to head dimension {head_dim}"
        )
    return TransformerConfig(
        in_channels=_value(config, path, "in_channels", 64),
        hidden_size=heads * head_dim,
        num_heads=heads,
        mlp_size=4 * heads * head_dim,
        depth_double=_value(config, path, "num_layers", 19),
        depth_single=_value(config, path, "num_single_layers", 38),
        text_width=_value(config, path, "joint_attention_dim", 4096),
        pooled_width=_value(config, path, "pooled_projection_dim", 768),
        rope_axes=(axes[0], axes[1], axes[2]),
        guidance_embed=_value(config, path, "guidance_embeds", False),
    )


def autoencoder_config(path: Path) -> AutoencoderConfig:
    """Read `vae/config.json`."""
    config = read_config(path)
    channels = config.get("block_out_channels", [128, 256, 512, 512])
    if not isinstance(channels, list) or not all(type(width) is int and width > 0 for width in channels):
        raise CheckpointError(f"{path}: block_out_channels {channels} is not a list of widths")
    return AutoencoderConfig(
        channels=tuple(channels),
        blocks_per_level=_value(config, path, "layers_per_block", 2),
        latent_channels=_value(config, path, "latent_channels", 16),
        norm_groups=_value(config, path, "norm_num_groups", 32),
        scaling_factor=_value(config, path, "scaling_factor", 0.3611),
        shift_factor=_value(config, path, "shift_factor", 0.1159),
        sample_size=_value(config, path, "sample_size", 1024),
    )


def schedule_config(path: Path) -> ScheduleConfig:
    """Read `scheduler/scheduler_config.json`."""
    config = read_config(path)
    return ScheduleConfig(
        use_dynamic_shifting=_value(config, path, "use_dynamic_shifting", False),
        shift=_value(config, path, "shift", 1.0),
        base_shift=_value(config, path, "base_shift", 0.5),
        max_shift=_value(config, path, "max_shift", 1.15),
        base_image_tokens=_value(config, path, "base_image_seq_len", 256),
        max_image_tokens=_value(config, path, "max_image_seq_len", 4096),
    )


def text_config(path: Path, kind: type[TextConfig]) -> TextConfig:
    """Read the `config.json` of a text encoder, which transformers checks."""
    try:
        return kind.from_dict(read_config(path))
    except (StrictDataclassError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from None


def read_config(path: Path) -> dict[str, Any]:
    """Read a configuration; refuses that of a quantised component."""
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing")
    config = read_json(path)
    _refuse_quantised(config, path)
    return config


def _value(config: dict[str, Any], path: Path, key: str, default: Number) -> Number:
    """Return a number of the kind of `default`; raises `CheckpointError` that names file, key and value."""
    value = config.get(key, default)
    if type(default) is float and type(value) is int:
        value = float(value)
    if type(value) is not type(default) or (type(value) is int and value < 0):
        raise CheckpointError(f"{path}: {key} is {value!r}, not a {type(default).__name__}")
    return value


def _refuse_quantised(config: dict[str, Any], path: Path) -> None:
    if quantisation := config.get("quantization_config"):
        method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
        raise CheckpointError(
            f"{path}: the component is quantised with {method!r}, which is not supported; use the bf16 "
            "folder of the same model, or a single fp8 (e4m3) file"
        )
