"""What the published layouts call each parameter of ours.

Our modules carry the original names, so for that layout there is only a spelling or two to know; for the
diffusers layout each original name is made of one or more stored tensors. The tables are those of the
published checkpoints (black-forest-labs/flux and diffusers' FluxTransformer2DModel and AutoencoderKL).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one parameter is stored: parts one after another along the rows.

    Each part is a tuple of alternative names for the same tensor. `swap_halves`: the stored rows are
    [scale; shift] where ours are [shift; scale].
    """

    parts: tuple[tuple[str, ...], ...]
    swap_halves: bool = False


Naming = Callable[[str], Recipe]


def as_named(name: str) -> Recipe:
    """The stored name is the parameter's own."""
    return Recipe(((name,),))


def original_transformer(name: str) -> Recipe:
    """Newer files of the original code write `query_norm.weight` for `query_norm.scale`."""
    if name.endswith("_norm.scale"):
        return Recipe(((name, f"{name.removesuffix('scale')}weight"),))
    return as_named(name)


def t5(name: str) -> Recipe:
    """The token embedding is stored under either or both of its names."""
    names = ("shared.weight", "encoder.embed_tokens.weight")
    return Recipe((names,)) if name in names else as_named(name)


_TRANSFORMER_TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
_DOUBLE_BLOCK = {
    "img_mod.lin": ("norm1.linear",),
    "txt_mod.lin": ("norm1_context.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
_SINGLE_BLOCK = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
_BLOCK = re.compile(r"(double|single)_blocks\.(\d+)\.(.+)")


def diffusers_transformer(name: str) -> Recipe:
    """Where diffusers' FluxTransformer2DModel keeps the original parameter `name`."""
    module, _, leaf = name.rpartition(".")
    leaf = "weight" if leaf == "scale" else leaf
    if block := _BLOCK.fullmatch(module):
        kind, index, inner = block.groups()
        prefix = "transformer_blocks" if kind == "double" else "single_transformer_blocks"
        modules = (_DOUBLE_BLOCK if kind == "double" else _SINGLE_BLOCK)[inner]
        return Recipe(tuple((f"{prefix}.{index}.{each}.{leaf}",) for each in modules))
    return Recipe(
        ((f"{_TRANSFORMER_TOP[module]}.{leaf}",),), swap_halves=module == "final_layer.adaLN_modulation.1"
    )


_AUTOENCODER_MIDDLE = {
    "block_1": "resnets.0",
    "block_2": "resnets.1",
    "attn_1.norm": "attentions.0.group_norm",
    "attn_1.q": "attentions.0.to_q",
    "attn_1.k": "attentions.0.to_k",
    "attn_1.v": "attentions.0.to_v",
    "attn_1.proj_out": "attentions.0.to_out.0",
}
_AUTOENCODER_LEVEL = re.compile(
    r"(encoder\.down|decoder\.up)\.(\d+)\.(block\.(\d+)|downsample|upsample)\.(.+)"
)
_AUTOENCODER_MID = re.compile(r"(encoder|decoder)\.mid\.(block_[12]|attn_1\.\w+)\.(.+)")


def diffusers_autoencoder(levels: int) -> Naming:
    """Where diffusers' AutoencoderKL keeps an original parameter.

    It counts the decoder's levels from the lowest resolution, the original from the highest.
    """

    def naming(name: str) -> Recipe:
        if match := _AUTOENCODER_LEVEL.fullmatch(name):
            side, level, part, block, rest = match.groups()
            if side == "encoder.down":
                path = f"encoder.down_blocks.{level}"
            else:
                path = f"decoder.up_blocks.{levels - 1 - int(level)}"
            inner = f"resnets.{block}" if block is not None else f"{part}rs.0"  # downsamplers, upsamplers
            return as_named(f"{path}.{inner}.{rest.replace('nin_shortcut', 'conv_shortcut')}")
        if match := _AUTOENCODER_MID.fullmatch(name):
            side, module, rest = match.groups()
            return as_named(f"{side}.mid_block.{_AUTOENCODER_MIDDLE[module]}.{rest}")
        return as_named(name.replace(".norm_out.", ".conv_norm_out."))

    return naming


def clip(name: str) -> Recipe:
    """Published files prefix every name with `text_model.`, transformers' module does not."""
    return Recipe(((f"text_model.{name}", name),))


_IGNORED = re.compile(
    r"(.*\.)?(position_ids|logit_scale|text_projection\.weight|scaled_fp8|scale_input|input_scale|comfy_quant"
    r"|scale_weight|weight_scale)|vision_model\..*|visual_projection\..*"
)


def is_ignored(name: str) -> bool:
    """Stored tensors that no parameter of ours is made of, and that are known to be harmless."""
    return _IGNORED.fullmatch(name) is not None
