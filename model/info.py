"""What a pipeline loaded, and the defaults that belong to its weights where a request leaves them open."""

from dataclasses import dataclass
from typing import Self

import torch

from model.checkpoint import Checkpoint
from model.layout import Numerics
from model.quantization import QuantizeName


@dataclass(frozen=True, slots=True)
class PipelineInfo:
    """What was loaded, and the defaults that belong to it."""

    name: str
    digest: str
    device: str
    dtype: str
    numerics: str
    quantize: str
    guidance_embed: bool
    default_width: int
    default_height: int
    default_steps: int
    default_sequence_length: int

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        *,
        digest: str,
        device: torch.device,
        dtype: torch.dtype,
        numerics: Numerics,
        quantize: QuantizeName,
        longest_text: int,
    ) -> Self:
        """Describe `checkpoint` as it was loaded; its tokenizer takes `longest_text` tokens."""
        guidance_embed = checkpoint.transformer_config.guidance_embed
        return cls(
            name=checkpoint.name,
            digest=digest,
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            numerics=numerics.value,
            quantize=quantize,
            guidance_embed=guidance_embed,
            default_width=checkpoint.autoencoder_config.sample_size,
            default_height=checkpoint.autoencoder_config.sample_size,
            default_steps=28 if guidance_embed else 4,
            default_sequence_length=min(512 if guidance_embed else 256, longest_text),
        )
