"""Every name and shape of the published checkpoints at full size, in both layouts, on the meta device."""

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from model.autoencoder import Autoencoder
from model.config import AutoencoderConfig, TransformerConfig
from model.names import Naming, clip, diffusers_autoencoder, diffusers_transformer, t5
from model.transformer import Transformer


@pytest.mark.parametrize(("guidance", "originals", "stored"), [(False, 776, 1156), (True, 780, 1160)])
def test_full_size_transformer_names_are_those_of_both_layouts(
    guidance: bool, originals: int, stored: int
) -> None:
    with torch.device("meta"):
        ours = Transformer(TransformerConfig(guidance_embed=guidance)).state_dict()
        theirs = FluxTransformer2DModel(guidance_embeds=guidance).state_dict()
    assert (len(ours), len(theirs)) == (originals, stored)
    assert_same_tensors(ours, theirs, diffusers_transformer)


def test_full_size_autoencoder_names_are_those_of_both_layouts() -> None:
    with torch.device("meta"):
        ours = Autoencoder(AutoencoderConfig()).state_dict()
        theirs = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ).state_dict()
    assert (len(ours), len(theirs)) == (244, 244)
    assert sum(tensor.numel() for tensor in ours.values()) == 83_819_683
    assert_same_tensors(ours, theirs, diffusers_autoencoder(4))


def assert_same_tensors(
    ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], naming: Naming
) -> None:
    """Every tensor of theirs makes exactly one row range of ours, with the same shape."""
    used: list[str] = []
    for name, tensor in ours.items():
        parts = [part[0] for part in naming(name).parts]
        used += parts
        shapes = [squeezed(theirs[part]) for part in parts]
        assert {shape[1:] for shape in shapes} == {squeezed(tensor)[1:]}, name
        assert sum(shape[0] for shape in shapes) == tensor.shape[0], name
    assert sorted(used) == sorted(theirs)


def squeezed(tensor: torch.Tensor) -> tuple[int, ...]:
    """A 1x1 convolution and a linear are the same matrix."""
    shape = tuple(tensor.shape)
    return shape[:2] if shape[2:] == (1, 1) else shape


def test_full_size_text_encoder_names_are_the_published_ones() -> None:
    with torch.device("meta"):
        clip_model = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
        t5_model = T5EncoderModel(
            T5Config(
                d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
            )
        )
    clip_shapes = {
        clip(name).parts[0][0]: tuple(each.shape) for name, each in clip_model.state_dict().items()
    }
    assert len(clip_shapes) == 196
    assert clip_shapes["text_model.embeddings.token_embedding.weight"] == (49408, 768)
    assert clip_shapes["text_model.embeddings.position_embedding.weight"] == (77, 768)
    assert clip_shapes["text_model.encoder.layers.11.mlp.fc2.weight"] == (768, 3072)
    t5_shapes = {t5(name).parts[0][0]: tuple(each.shape) for name, each in t5_model.state_dict().items()}
    assert len(t5_shapes) == 219
    assert t5_shapes["shared.weight"] == (32128, 4096)
    first = "encoder.block.0.layer.0.SelfAttention"
    assert t5_shapes[f"{first}.relative_attention_bias.weight"] == (32, 64)
    assert t5_shapes["encoder.block.23.layer.1.DenseReluDense.wi_1.weight"] == (10240, 4096)
