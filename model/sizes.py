"""The sizes of all four modules of a FLUX.1 model together."""

from dataclasses import dataclass
from typing import Self

from torch import nn
from transformers import CLIPTextConfig, T5Config

from kernels.cases import Dimensions
from model.config import AutoencoderConfig, TransformerConfig


@dataclass(frozen=True, slots=True)
class Sizes:
    """What it takes to build a model of which no file exists."""

    transformer: TransformerConfig
    autoencoder: AutoencoderConfig
    clip: CLIPTextConfig
    t5: T5Config

    @property
    def dimensions(self) -> Dimensions:
        """The widths at which the operations of this model run."""
        return Dimensions(
            heads=self.transformer.num_heads,
            head_dim=self.transformer.head_dim,
            text_width=self.t5.d_model,
            channels=self.autoencoder.channels,
            norm_groups=self.autoencoder.norm_groups,
        )

    @classmethod
    def published(cls) -> Self:
        """FLUX.1 [schnell], as its configuration files have it."""
        clip = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            bos_token_id=0,
            eos_token_id=2,
        )
        t5 = T5Config(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
        return cls(TransformerConfig(), AutoencoderConfig(), clip, t5)

    @classmethod
    def medium(cls) -> Self:
        """A quarter of the widths and a fifth of the blocks: 0.2 billion parameters, for a CPU."""
        transformer = TransformerConfig(
            hidden_size=768,
            num_heads=6,
            mlp_size=3072,
            depth_double=4,
            depth_single=8,
            text_width=512,
            pooled_width=256,
        )
        clip = CLIPTextConfig(
            vocab_size=49408,
            hidden_size=256,
            intermediate_size=1024,
            num_hidden_layers=6,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=2,
        )
        t5 = T5Config(
            vocab_size=32128,
            d_model=512,
            d_kv=64,
            d_ff=1024,
            num_layers=8,
            num_heads=6,
            feed_forward_proj="gated-gelu",
        )
        return cls(transformer, AutoencoderConfig(channels=(32, 64, 128, 128)), clip, t5)


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, tied ones once."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
