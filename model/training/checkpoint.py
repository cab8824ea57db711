"""The trained model as a checkpoint folder: the diffusers layout, float16, with its SHA256SUMS."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.autoencoder import Autoencoder
from model.layout import Numerics
from model.names import Naming, diffusers_autoencoder, diffusers_transformer
from model.pipeline import Pipeline
from model.training.towers import Text
from model.transformer import Transformer
from model.verify import write_sums

_TOKENIZER_FILES = (
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer_2/spiece.model",
    "tokenizer_2/tokenizer_config.json",
)
_INDEX = {
    "_class_name": "FluxPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_SCHEDULE = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "use_dynamic_shifting": False,
}


def write_checkpoint(
    folder: Path, tokenizers: Path, *, transformer: Transformer, autoencoder: Autoencoder, text: Text
) -> None:
    """Write everything that the loader reads into `folder`; the tokenizers' files are copied."""
    _write_json(folder / "model_index.json", _INDEX)
    _write_json(folder / "scheduler" / "scheduler_config.json", _SCHEDULE)
    _write_transformer(folder / "transformer", transformer)
    _write_autoencoder(folder / "vae", autoencoder)
    for encoder, name in ((text.clip, "text_encoder"), (text.t5, "text_encoder_2")):
        torch.nn.Module.to(encoder, torch.float16)  # transformers annotates its own `to` away
        encoder.save_pretrained(folder / name)
    for name in _TOKENIZER_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tokenizers / name, folder / name)
    write_sums(folder)


def read_checkpoint(folder: Path, device: torch.device) -> tuple[Transformer, Autoencoder, Text, str]:
    """Read what `write_checkpoint` wrote, in float32, as the server's loader does, and its digest."""
    pipeline = Pipeline.load(
        folder, device=device, dtype=torch.float32, numerics=Numerics.FAST, kernels="reference"
    )
    clip, t5 = pipeline.clip, pipeline.t5
    for module in (pipeline.autoencoder, clip.model, t5.model):
        module.requires_grad_(False)
    return (
        pipeline.transformer,
        pipeline.autoencoder,
        Text(clip.model, t5.model, clip.tokenizer, t5.tokenizer),
        pipeline.info.digest,
    )


def _write_transformer(folder: Path, transformer: Transformer) -> None:
    config = transformer.config
    _write_json(
        folder / "config.json",
        {
            "_class_name": "FluxTransformer2DModel",
            "attention_head_dim": config.head_dim,
            "axes_dims_rope": list(config.rope_axes),
            "guidance_embeds": config.guidance_embed,
            "in_channels": config.in_channels,
            "joint_attention_dim": config.text_width,
            "num_attention_heads": config.num_heads,
            "num_layers": config.depth_double,
            "num_single_layers": config.depth_single,
            "patch_size": 1,
            "pooled_projection_dim": config.pooled_width,
        },
    )
    tensors = stored_tensors(transformer, diffusers_transformer, width=config.hidden_size)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


def _write_autoencoder(folder: Path, autoencoder: Autoencoder) -> None:
    config = autoencoder.config
    levels = len(config.channels)
    _write_json(
        folder / "config.json",
        {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": list(config.channels),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "force_upcast": True,
            "in_channels": 3,
            "latent_channels": config.latent_channels,
            "layers_per_block": config.blocks_per_level,
            "mid_block_add_attention": True,
            "norm_num_groups": config.norm_groups,
            "out_channels": 3,
            "sample_size": config.sample_size,
            "scaling_factor": config.scaling_factor,
            "shift_factor": config.shift_factor,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "use_post_quant_conv": False,
            "use_quant_conv": False,
        },
    )
    tensors = stored_tensors(autoencoder, diffusers_autoencoder(levels), width=0)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")


def stored_tensors(module: nn.Module, naming: Naming, *, width: int) -> dict[str, Tensor]:
    """Name and divide the parameters of `module` as the diffusers layout has them, in float16.

    A parameter of several parts holds `width` rows of each, and the last part the rest.
    """
    stored: dict[str, Tensor] = {}
    for name, parameter in module.state_dict().items():
        recipe = naming(name)
        if recipe.swap_halves:
            parameter = torch.cat(parameter.chunk(2)[::-1])
        sizes = [width] * (len(recipe.parts) - 1)
        pieces = parameter.split([*sizes, len(parameter) - sum(sizes)])
        for (part, *_), piece in zip(recipe.parts, pieces, strict=True):
            if ".attentions." in part and piece.dim() == 4:
                piece = piece.flatten(1)  # the original layout spells these linears as 1x1 convolutions
            stored[part] = piece.half().contiguous()
    return stored


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
