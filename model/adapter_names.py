"""Which linear of ours a key of an adapter's file speaks of, in the styles of the tools that train adapters.

A key is a prefix of its tool, a layer, and which part of the change it is. Layers are called as in the
original checkpoint (kohya, ComfyUI, ai-toolkit), as in diffusers (PEFT, OneTrainer), or after the attention
processors of XLabs; kohya and OneTrainer write underscores for the dots.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from kernels.rows import Span, spans
from model.names import diffusers_transformer
from model.quantization import Linear
from model.transformer import Transformer


class Part(Enum):
    """What a tensor is of the change `alpha / rank * up @ down` of a weight."""

    DOWN = "down"
    UP = "up"
    ALPHA = "alpha"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a change belongs: the rows `outputs` of the weight of `layer`.

    `swap_halves`: the stored rows are [scale; shift] where ours are [shift; scale].
    """

    layer: str
    outputs: Span
    swap_halves: bool = False


class Key(NamedTuple):
    """A key taken apart; `module` is the layer as the file calls it, behind any prefix."""

    module: str
    part: Part


_DOTTED_PREFIX = re.compile(r"(base_model\.model\.)?(transformer\.|(model\.)?diffusion_model\.)?")
_UNDERSCORED_PREFIX = re.compile(r"lora_(unet|transformer)_")
_LEAF = re.compile(r"(.+?)\.(?:(?:lora[._])?(down|up|A|B)(?:\.default)?\.weight|(alpha))")
_PARTS = {"down": Part.DOWN, "A": Part.DOWN, "up": Part.UP, "B": Part.UP, "alpha": Part.ALPHA}


def parse_key(key: str) -> Key | None:
    """Take a key apart; None for what is not part of a low-rank change."""
    if (match := _LEAF.fullmatch(key)) is None:
        return None
    module, weight, alpha = match.groups()
    for prefix in (_UNDERSCORED_PREFIX, _DOTTED_PREFIX):
        if (found := prefix.match(module)) is not None:
            return Key(module[found.end() :], _PARTS[weight or alpha])
    raise AssertionError("the dotted prefix may be empty")


def places(transformer: Transformer) -> dict[str, Place]:
    """Return the place of every layer that an adapter may change, by every name that it has."""
    found: dict[str, Place] = {}
    for layer, module in transformer.named_modules():
        if isinstance(module, Linear):
            for name, place in _names(layer, module):
                found[name] = found[name.replace(".", "_")] = place
    return found


def _names(layer: str, module: Linear) -> Iterator[tuple[str, Place]]:
    whole = Place(layer, Span(0, module.out_features))
    yield layer, whole
    recipe = diffusers_transformer(f"{layer}.weight")
    for names, outputs in zip(recipe.parts, _cut(module, len(recipe.parts)), strict=True):
        for name in names:
            yield name.removesuffix(".weight"), Place(layer, outputs, recipe.swap_halves)
    yield from _xlabs_names(layer, whole, module)


def _cut(module: Linear, parts: int) -> tuple[Span, ...]:
    """Return the outputs of each part of a layer: q, k, v as wide as its input, and the MLP."""
    heads = [module.in_features] * min(parts, 3) if parts > 1 else []
    rest = module.out_features - sum(heads)
    return spans([*heads, rest] if rest else heads)


_XLABS_DOUBLE = re.compile(r"(double_blocks\.\d+)\.(img|txt)_attn\.(qkv|proj)")
_XLABS_SINGLE = re.compile(r"(single_blocks\.\d+)\.(linear1|linear2)")


def _xlabs_names(layer: str, whole: Place, module: Linear) -> Iterator[tuple[str, Place]]:
    if match := _XLABS_DOUBLE.fullmatch(layer):
        block, stream, name = match.groups()
        yield f"{block}.processor.{name}_lora{1 if stream == 'img' else 2}", whole
    elif match := _XLABS_SINGLE.fullmatch(layer):
        block, name = match.groups()
        if name == "linear1":
            yield f"{block}.processor.qkv_lora", Place(layer, Span(0, 3 * module.in_features))
        else:
            yield f"{block}.processor.proj_lora", whole


_UNSUPPORTED = (
    (
        "of text encoders",
        re.compile(r"lora_te\d?_.*|(base_model\.model\.)?(text_encoders?(_\d)?|clip|t5)\..*"),
    ),
    ("of DoRA", re.compile(r".*(dora_scale|lora_magnitude_vector).*")),
    ("of LoKr or LoHa", re.compile(r".*(lokr|hada|loha)_.*")),
    (
        "of biases or norms",
        re.compile(
            r".*(\.bias|\.diff|\.diff_b|\.set_weight|(query_norm|key_norm|norm_q|norm_k|norm_added_[qk])\.(scale|weight))"
        ),
    ),
)


def describe_unsupported(keys: list[str], *, shown: int = 3) -> str:
    """Say what keys without a place are: `2 keys of DoRA (a, b), 1 unknown (c)`."""
    kinds: dict[str, list[str]] = {}
    for key in keys:
        kind = next((kind for kind, pattern in _UNSUPPORTED if pattern.fullmatch(key)), "")
        kinds.setdefault(kind, []).append(key)
    phrases = []
    for kind, found in kinds.items():
        more = ", …" if len(found) > shown else ""
        what = f"{len(found)} key{'s' * (len(found) > 1)}" if kind else f"{len(found)} unknown"
        listed = ", ".join(key[:100] for key in found[:shown])
        phrases.append(f"{what}{' ' if kind else ''}{kind} ({listed}{more})")
    return ", ".join(phrases)
