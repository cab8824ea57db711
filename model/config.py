"""The sizes of a FLUX.1 model: what a checkpoint states or what its tensor shapes imply.

Owned here and read by everything in `model`; the loader fills these in, nothing else does. The defaults
are FLUX.1 [schnell]. CLIP and T5 keep their transformers configuration classes.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """The rectified-flow transformer; widths are in features, depths in blocks."""

    in_channels: int = 64
    hidden_size: int = 3072
    num_heads: int = 24
    mlp_size: int = 12288
    depth_double: int = 19
    depth_single: int = 38
    text_width: int = 4096
    pooled_width: int = 768
    rope_axes: tuple[int, int, int] = (16, 56, 56)
    rope_theta: float = 10_000.0
    guidance_embed: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """The 8x image autoencoder. `channels` are per level from full to lowest resolution.

    `sample_size` is the side in pixels that the model was trained for: the default size of a picture.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)
    blocks_per_level: int = 2
    latent_channels: int = 16
    norm_groups: int = 32
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159
    sample_size: int = 1024


@dataclass(frozen=True, slots=True)
class ScheduleConfig:
    """How sigmas are shifted: schnell not at all, dev by the number of image tokens."""

    use_dynamic_shifting: bool = False
    shift: float = 1.0
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_tokens: int = 256
    max_image_tokens: int = 4096
