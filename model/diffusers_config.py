"""The JSON configurations of a diffusers folder, and those beside bare text encoders, read key by key.

Every value has a type and a range, so that a mistyped or hostile file is an error that names file and key and
not a module of ten million blocks. Only the keys that define an architecture are taken: transformers would
also act on others, `attn_implementation` could even name code to download. Shapes are model/recognition.py's.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from transformers import CLIPTextConfig, T5Config

from model.bundle import read_json
from model.config import AutoencoderConfig, ScheduleConfig, TransformerConfig
from model.safetensors_file import CheckpointError

MAX_BLOCKS = 1000  # published: 38
MAX_WIDTH = 1 << 17  # published: 32128 words, 15360 features
MAX_NUMBER = 1_000_000  # published: 3.0
PICTURE_SIDES = range(256, 1537)  # pixels that may be the default of a model
CLIP_POSITIONS = 77  # tokens of every prompt
CLIP_TYPES = ("clip_text_model", "clip")
CLIP_ACTIVATIONS = ("quick_gelu", "gelu")
T5_FEED_FORWARDS = ("gated-gelu", "relu")  # of T5 v1.1 and of v1.0


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A JSON object and its file; the readers raise `CheckpointError` naming file, key and value."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a configuration; refuses one that says that its component is quantised."""
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        config = cls(path, read_json(path))
        config._refuse_quantised()
        return config

    def count(self, key: str, default: int, *, least: int = 1, limit: int = MAX_WIDTH) -> int:
        value = self.content.get(key, default)
        if type(value) is not int or not least <= value <= limit:
            raise self.refusal(key, f"a whole number from {least} to {limit}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.content.get(key, default)
        if type(value) not in (int, float) or not -MAX_NUMBER <= value <= MAX_NUMBER:  # NaN is in no range
            raise self.refusal(key, f"a number between {-MAX_NUMBER} and {MAX_NUMBER}")
        return float(value)

    def positive(self, key: str, default: float) -> float:
        if (value := self.number(key, default)) <= 0:
            raise self.refusal(key, "a number above 0")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise self.refusal(key, "true or false")
        return value

    def choice(self, key: str, default: str, allowed: tuple[str, ...]) -> str:
        value = self.content.get(key, default)
        if value not in allowed:
            raise self.refusal(key, f"one of {', '.join(allowed)}")
        return str(value)

    def counts(self, key: str, default: list[int]) -> tuple[int, ...]:
        values = self.content.get(key, default)
        if not isinstance(values, list) or not all(type(v) is int and 0 < v <= MAX_WIDTH for v in values):
            raise self.refusal(key, f"a list of whole numbers from 1 to {MAX_WIDTH}")
        return tuple(values)

    def refusal(self, key: str, allowed: str) -> CheckpointError:
        """Return the error for the value of `key`, which is not what is allowed."""
        return CheckpointError(f"{self.path}: {key} is {str_of(self.content.get(key))}, not {allowed}")

    def _refuse_quantised(self) -> None:
        if quantisation := self.content.get("quantization_config"):
            method = quantisation.get("quant_method") if isinstance(quantisation, dict) else quantisation
            raise CheckpointError(
                f"{self.path}: the component is quantised with {str_of(method)}, which is not supported; use "
                "the bf16 folder of the same model, or a single fp8 (e4m3) file"
            )


def str_of(value: object) -> str:
    """Return a JSON value for a message, cut to a length that a line can hold."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def transformer_config(path: Path) -> TransformerConfig:
    """Read the transformer's config.json of a diffusers folder."""
    file = ConfigFile.open(path)
    heads = file.count("num_attention_heads", 24)
    head_dim = file.count("attention_head_dim", 128)
    if heads * head_dim > MAX_WIDTH:
        raise CheckpointError(f"{path}: {heads} heads of {head_dim} are wider than {MAX_WIDTH}")
    axes = file.counts("axes_dims_rope", [16, 56, 56])
    if len(axes) != 3 or any(axis % 2 for axis in axes) or sum(axes) != head_dim:
        raise CheckpointError(
            f"{path}: axes_dims_rope {str_of(list(axes))} is not three even numbers that sum to head "
            f"dimension {head_dim}"
        )
    return TransformerConfig(
        in_channels=file.count("in_channels", 64),
        hidden_size=heads * head_dim,
        num_heads=heads,
        mlp_size=4 * heads * head_dim,
        depth_double=file.count("num_layers", 19, limit=MAX_BLOCKS),
        depth_single=file.count("num_single_layers", 38, limit=MAX_BLOCKS),
        text_width=file.count("joint_attention_dim", 4096),
        pooled_width=file.count("pooled_projection_dim", 768),
        rope_axes=(axes[0], axes[1], axes[2]),
        guidance_embed=file.flag("guidance_embeds", False),
    )


def autoencoder_config(path: Path) -> AutoencoderConfig:
    """Read the autoencoder's config.json of a diffusers folder."""
    file = ConfigFile.open(path)
    return AutoencoderConfig(
        channels=file.counts("block_out_channels", [128, 256, 512, 512]),
        blocks_per_level=file.count("layers_per_block", 2, limit=MAX_BLOCKS),
        latent_channels=file.count("latent_channels", 16),
        norm_groups=file.count("norm_num_groups", 32),
        scaling_factor=file.positive("scaling_factor", 0.3611),
        shift_factor=file.number("shift_factor", 0.1159),
        sample_size=_sample_size(file),
    )


def schedule_config(path: Path) -> ScheduleConfig:
    """Read scheduler_config.json of a diffusers folder."""
    file = ConfigFile.open(path)
    schedule = ScheduleConfig(
        use_dynamic_shifting=file.flag("use_dynamic_shifting", False),
        shift=file.positive("shift", 1.0),
        base_shift=file.number("base_shift", 0.5),
        max_shift=file.number("max_shift", 1.15),
        base_image_tokens=file.count("base_image_seq_len", 256),
        max_image_tokens=file.count("max_image_seq_len", 4096),
    )
    if schedule.base_image_tokens >= schedule.max_image_tokens:
        raise file.refusal("base_image_seq_len", f"below max_image_seq_len {schedule.max_image_tokens}")
    return schedule


def clip_config(path: Path) -> CLIPTextConfig:
    """Read the configuration of CLIP's text model, alone or inside that of a whole CLIP."""
    file = ConfigFile.open(path)
    file.choice("model_type", CLIP_TYPES[0], CLIP_TYPES)
    if isinstance(text := file.content.get("text_config"), dict):
        file = ConfigFile(path, text)
    width, heads = file.count("hidden_size", 512), file.count("num_attention_heads", 8)
    if width % heads:
        raise file.refusal("num_attention_heads", f"a divisor of hidden_size {width}")
    return CLIPTextConfig(
        vocab_size=file.count("vocab_size", 49408),
        hidden_size=width,
        intermediate_size=file.count("intermediate_size", 2048),
        num_hidden_layers=file.count("num_hidden_layers", 12, limit=MAX_BLOCKS),
        num_attention_heads=heads,
        max_position_embeddings=file.count("max_position_embeddings", CLIP_POSITIONS, least=CLIP_POSITIONS),
        hidden_act=file.choice("hidden_act", "quick_gelu", CLIP_ACTIVATIONS),
        layer_norm_eps=file.positive("layer_norm_eps", 1e-5),
        bos_token_id=file.count("bos_token_id", 49406, least=0),
        eos_token_id=file.count("eos_token_id", 49407, least=0),
    )


def t5_config(path: Path) -> T5Config:
    """Read the configuration of T5's encoder, alone or inside that of a whole T5."""
    file = ConfigFile.open(path)
    file.choice("model_type", "t5", ("t5",))
    buckets = file.count("relative_attention_num_buckets", 32, least=4)
    return T5Config(
        vocab_size=file.count("vocab_size", 32128),
        d_model=file.count("d_model", 512),
        d_kv=file.count("d_kv", 64),
        d_ff=file.count("d_ff", 2048),
        num_layers=file.count("num_layers", 6, limit=MAX_BLOCKS),
        num_heads=file.count("num_heads", 8),
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=file.count(
            "relative_attention_max_distance", 128, least=buckets // 4 + 1
        ),
        layer_norm_epsilon=file.positive("layer_norm_epsilon", 1e-6),
        feed_forward_proj=file.choice("feed_forward_proj", "relu", T5_FEED_FORWARDS),
    )


def is_config_of(kind: type[CLIPTextConfig] | type[T5Config], path: Path) -> bool:
    """Whether `path` is a configuration of that text encoder, and not of its neighbour in the folder."""
    types = CLIP_TYPES if kind is CLIPTextConfig else (kind.model_type,)
    return path.is_file() and read_json(path).get("model_type") in types


def _sample_size(file: ConfigFile) -> int:
    """Return the default side of a picture; diffusers writes 32 where none was stated."""
    default = AutoencoderConfig().sample_size
    side = file.count("sample_size", default)
    return side if side % 16 == 0 and side in PICTURE_SIDES else default
