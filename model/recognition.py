"""Which component a tensor file holds, and the sizes that its tensor shapes imply.

Recognised by content: every layout has a tensor that no other has, possibly behind a prefix. File and folder
names are never trusted.
"""

import re
from collections.abc import Container
from dataclasses import dataclass
from enum import StrEnum

from transformers import CLIPTextConfig, T5Config

from model import names
from model.bundle import Bundle, Located
from model.config import AutoencoderConfig, TransformerConfig
from model.diffusers_config import CLIP_POSITIONS
from model.names import Naming
from model.safetensors_file import CheckpointError


class Part(StrEnum):
    """The four components of a model."""

    TRANSFORMER = "transformer"
    AUTOENCODER = "autoencoder"
    CLIP = "CLIP text encoder"
    T5 = "T5 text encoder"


class LayoutName(StrEnum):
    ORIGINAL = "original"
    DIFFUSERS = "diffusers"


@dataclass(frozen=True, slots=True)
class Anchor:
    """A tensor name that gives a component and its layout away."""

    part: Part
    layout: LayoutName
    name: str


ANCHORS = (
    Anchor(Part.TRANSFORMER, LayoutName.ORIGINAL, "double_blocks.0.img_attn.norm.key_norm.scale"),
    Anchor(Part.TRANSFORMER, LayoutName.ORIGINAL, "double_blocks.0.img_attn.norm.key_norm.weight"),
    Anchor(Part.TRANSFORMER, LayoutName.DIFFUSERS, "transformer_blocks.0.attn.norm_added_k.weight"),
    Anchor(Part.AUTOENCODER, LayoutName.ORIGINAL, "decoder.up.0.block.0.norm1.weight"),
    Anchor(Part.AUTOENCODER, LayoutName.DIFFUSERS, "decoder.up_blocks.0.resnets.0.norm1.weight"),
    Anchor(Part.CLIP, LayoutName.ORIGINAL, "text_model.embeddings.token_embedding.weight"),
    Anchor(Part.CLIP, LayoutName.ORIGINAL, "embeddings.token_embedding.weight"),
    Anchor(Part.T5, LayoutName.ORIGINAL, "encoder.block.0.layer.0.SelfAttention.q.weight"),
)
UNSUPPORTED = (
    (re.compile(r"\.quant_state\.bitsandbytes__|\.absmax$"), "bitsandbytes NF4/FP4 weights"),
    (re.compile(r"\.weight_scale_2$"), "nvfp4 weights"),
    (re.compile(r"\.qweight$|\.wscales$"), "packed 4-bit weights"),
)
PREFIX = re.compile(r"([\w-]+\.)*")
INDEX = r"(\d{1,3})"  # of a block: a name with a larger one is unexpected, and no reason to build a million
MAX_SIDE = 1 << 20  # of a shape that sizes are read off; published: 49408
CLIP_HEAD = 64  # features per head, in every published CLIP


@dataclass(frozen=True, slots=True)
class Found:
    """A component in a bundle: its tensors by their names behind the prefix."""

    part: Part
    layout: LayoutName
    bundle: Bundle
    tensors: dict[str, Located]


def find_parts(bundle: Bundle, *, besides: Container[Part] = ()) -> list[Found]:
    """Return the components that `bundle` holds, `besides` those that are not wanted of it.

    Refuses quantised formats that are not served, unless all that the bundle holds is unwanted anyway.
    """
    prefixes: dict[Part, tuple[LayoutName, str]] = {}
    for anchor in ANCHORS:
        for name in bundle.tensors:
            prefix = name.removesuffix(anchor.name)
            if prefix != name and PREFIX.fullmatch(prefix):
                prefixes.setdefault(anchor.part, (anchor.layout, prefix))
    wanted = [part for part in prefixes if part not in besides]
    if wanted or not besides:
        _refuse_unsupported(bundle)
    return [
        Found(part, layout, bundle, _behind(prefix, bundle, [other for _, other in prefixes.values()]))
        for part, (layout, prefix) in prefixes.items()
        if part in wanted
    ]


def _behind(prefix: str, bundle: Bundle, prefixes: list[str]) -> dict[str, Located]:
    """Return the tensors behind `prefix` that no longer prefix of another component claims."""
    longer = tuple(other for other in prefixes if other.startswith(prefix) and len(other) > len(prefix))
    return {
        name.removeprefix(prefix): located
        for name, located in bundle.tensors.items()
        if name.startswith(prefix) and not (longer and name.startswith(longer))
    }


def _refuse_unsupported(bundle: Bundle) -> None:
    for name in bundle.tensors:
        for pattern, what in UNSUPPORTED:
            if pattern.search(name):
                raise CheckpointError(
                    f"{bundle.path}: tensor {name!r} belongs to {what}, which are not supported; use bf16, "
                    "fp16 or fp8 (e4m3) files of the same model"
                )


def naming(found: Found) -> Naming:
    """Return where the parameters of this component are stored."""
    if found.part is Part.CLIP:
        return names.clip
    if found.part is Part.T5:
        return names.t5
    if found.layout is LayoutName.ORIGINAL:
        return names.original_transformer if found.part is Part.TRANSFORMER else names.as_named
    if found.part is Part.TRANSFORMER:
        return names.diffusers_transformer
    return names.diffusers_autoencoder(_count(found, rf"decoder\.up_blocks\.{INDEX}\."))


def transformer_config(found: Found) -> TransformerConfig:
    """Read the sizes off the shapes; the RoPE axes are 1/8, 7/16 and 7/16 of the head dimension."""
    where = naming(found)

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        parts = [_shape_of(found, part, dimensions) for part in where(name).parts]
        return (sum(part[0] for part in parts), *parts[0][1:])

    hidden, in_channels = shape("img_in.weight", 2)
    (head_dim,) = shape("double_blocks.0.img_attn.norm.key_norm.scale", 1)
    if head_dim % 16 or hidden % head_dim:
        raise CheckpointError(
            f"{found.bundle.path}: a head dimension of {head_dim} at width {hidden} cannot be split into "
            "RoPE axes of 1/8, 7/16 and 7/16; use the diffusers folder of this model"
        )
    original = found.layout is LayoutName.ORIGINAL
    double, single = (
        ("double_blocks", "single_blocks")
        if original
        else ("transformer_blocks", "single_transformer_blocks")
    )
    return TransformerConfig(
        in_channels=in_channels,
        hidden_size=hidden,
        num_heads=hidden // head_dim,
        mlp_size=shape("double_blocks.0.img_mlp.0.weight", 2)[0],
        depth_double=_count(found, rf"{double}\.{INDEX}\."),
        depth_single=_count(found, rf"{single}\.{INDEX}\."),
        text_width=shape("txt_in.weight", 2)[1],
        pooled_width=shape("vector_in.in_layer.weight", 2)[1],
        rope_axes=(head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16),
        guidance_embed=any(
            name.startswith(("guidance_in.", "time_text_embed.guidance_embedder.")) for name in found.tensors
        ),
    )


def autoencoder_config(found: Found) -> AutoencoderConfig:
    """Read the sizes off the shapes; 32 norm groups and the published scaling cannot be read."""
    levels = _count(found, rf"encoder\.down(?:_blocks)?\.{INDEX}\.")
    where = naming(found)

    def shape(name: str) -> tuple[int, ...]:
        return _shape_of(found, where(name).parts[0], 4)

    return AutoencoderConfig(
        channels=tuple(shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)),
        blocks_per_level=_count(found, rf"encoder\.down(?:_blocks)?\.0\.(?:block|resnets)\.{INDEX}\."),
        latent_channels=shape("decoder.conv_in.weight")[1],
    )


def clip_config(found: Found) -> CLIPTextConfig:
    """Read the sizes off the shapes; heads are 64 wide as in every published CLIP."""

    def shape(name: str) -> tuple[int, ...]:
        return _shape_of(found, names.clip(name).parts[0], 2)

    vocabulary, width = shape("embeddings.token_embedding.weight")
    positions, _ = shape("embeddings.position_embedding.weight")
    if width % CLIP_HEAD or positions < CLIP_POSITIONS:
        raise CheckpointError(
            f"{found.bundle.path}: a CLIP of width {width} with {positions} positions is none that FLUX.1 "
            f"uses: heads are {CLIP_HEAD} wide, prompts have {CLIP_POSITIONS} tokens"
        )
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape("encoder.layers.0.mlp.fc1.weight")[0],
        num_hidden_layers=_count(found, rf"(?:text_model\.)?encoder\.layers\.{INDEX}\."),
        num_attention_heads=width // CLIP_HEAD,
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=2,  # as published: the end of text is then found as the largest id
    )


def t5_config(found: Found) -> T5Config:
    """Read the sizes off the shapes; the number of heads is that of the relative position table."""

    def shape(name: str) -> tuple[int, ...]:
        return _shape_of(found, names.t5(name).parts[0], 2)

    vocabulary, width = shape("shared.weight")
    buckets, heads = shape("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    return T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=shape("encoder.block.0.layer.0.SelfAttention.q.weight")[0] // heads,
        d_ff=shape("encoder.block.0.layer.1.DenseReluDense.wi_0.weight")[0],
        num_layers=_count(found, rf"encoder\.block\.{INDEX}\."),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        feed_forward_proj="gated-gelu",
    )


def _shape_of(found: Found, alternatives: tuple[str, ...], dimensions: int) -> tuple[int, ...]:
    for name in alternatives:
        if name in found.tensors:
            shape = found.tensors[name].tensor.shape
            if len(shape) != dimensions or not all(0 < side <= MAX_SIDE for side in shape):
                raise CheckpointError(
                    f"{found.bundle.path}: {found.part} tensor {name!r} has shape {list(shape)}, which "
                    f"is not of {dimensions} dimensions between 1 and {MAX_SIDE}"
                )
            return shape
    raise CheckpointError(f"{found.bundle.path}: {found.part} tensor {alternatives[0]!r} is missing")


def _count(found: Found, pattern: str) -> int:
    """Return one more than the largest index that `pattern` finds at the start of a tensor name."""
    indices = [int(match[1]) for name in found.tensors if (match := re.match(pattern, name))]
    if not indices:
        raise CheckpointError(f"{found.bundle.path}: the {found.part} has no tensor like {pattern!r}")
    return max(indices) + 1
