"""Keys of adapters' files: every linear of the published model has its place in every style."""

import pytest
import torch

from kernels.rows import Span
from model.adapter_names import Key, Part, Place, describe_unsupported, parse_key, places
from model.config import TransformerConfig
from model.transformer import Transformer


@pytest.fixture(scope="module")
def known() -> dict[str, Place]:
    with torch.device("meta"):
        return places(Transformer(TransformerConfig(guidance_embed=True)))


@pytest.mark.parametrize(
    ("key", "place", "part"),
    [
        (
            "transformer.single_transformer_blocks.37.attn.to_v.lora_B.weight",
            Place("single_blocks.37.linear1", Span(6144, 3072)),
            Part.UP,
        ),
        (
            "transformer.single_transformer_blocks.0.proj_mlp.lora_A.weight",
            Place("single_blocks.0.linear1", Span(9216, 12288)),
            Part.DOWN,
        ),
        (
            "base_model.model.transformer.norm_out.linear.lora_A.default.weight",
            Place("final_layer.adaLN_modulation.1", Span(0, 6144), swap_halves=True),
            Part.DOWN,
        ),
        (
            "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight",
            Place("final_layer.adaLN_modulation.1", Span(0, 6144)),
            Part.UP,
        ),
        (
            "lora_unet_double_blocks_18_txt_attn_qkv.alpha",
            Place("double_blocks.18.txt_attn.qkv", Span(0, 9216)),
            Part.ALPHA,
        ),
        (
            "lora_transformer_transformer_blocks_3_attn_add_k_proj.lora_down.weight",
            Place("double_blocks.3.txt_attn.qkv", Span(3072, 3072)),
            Part.DOWN,
        ),
        (
            "lora_transformer_time_text_embed_guidance_embedder_linear_1.lora_down.weight",
            Place("guidance_in.in_layer", Span(0, 3072)),
            Part.DOWN,
        ),
        (
            "model.diffusion_model.txt_in.lora_down.weight",
            Place("txt_in", Span(0, 3072)),
            Part.DOWN,
        ),
        (
            "double_blocks.5.processor.proj_lora2.down.weight",
            Place("double_blocks.5.txt_attn.proj", Span(0, 3072)),
            Part.DOWN,
        ),
        (
            "diffusion_model.single_blocks.5.processor.qkv_lora.up.weight",
            Place("single_blocks.5.linear1", Span(0, 9216)),
            Part.UP,
        ),
        (
            "transformer.transformer_blocks.0.attn.to_out.0.lora.up.weight",
            Place("double_blocks.0.img_attn.proj", Span(0, 3072)),
            Part.UP,
        ),
    ],
)
def test_a_key_has_its_place(known: dict[str, Place], key: str, place: Place, part: Part) -> None:
    parsed = parse_key(key)
    assert parsed is not None
    assert (known[parsed.module], parsed.part) == (place, part)


@pytest.mark.parametrize(
    "key",
    [
        "transformer.x_embedder.lora_A.bias",
        "transformer.x_embedder.dora_scale",
        "lora_unet_img_in.lokr_w1",
        "lora_unet_img_in.hada_w1_a",
        "transformer_blocks.0.attn.norm_q.weight",
        "img_in.diff",
        "img_in.weight",
        ".lora_A.weight",
    ],
)
def test_what_is_no_part_of_a_low_rank_change_is_not_parsed(key: str) -> None:
    assert parse_key(key) is None


def test_a_module_is_named_as_the_file_names_it() -> None:
    assert parse_key("transformer.proj_out.alpha") == Key("proj_out", Part.ALPHA)


def test_what_is_not_supported_is_told_by_its_kind() -> None:
    keys = [
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha",
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
        "text_encoders.t5xxl.transformer.shared.lora_A.weight",
        "transformer.x_embedder.lora_magnitude_vector",
        *(f"lora_unet_double_blocks_{i}_img_mlp_0.lokr_w1" for i in range(5)),
        "double_blocks.0.img_attn.norm.query_norm.scale",
        "lora_unet_img_in.diff_b",
        "lora_unet_input_blocks_1_0.alpha",
    ]
    said = describe_unsupported(keys)
    assert said.startswith(
        "3 keys of text encoders (lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha, text"
    )
    assert "1 key of DoRA (transformer.x_embedder.lora_magnitude_vector)" in said
    assert "5 keys of LoKr or LoHa (lora_unet_double_blocks_0_img_mlp_0.lokr_w1" in said
    assert "img_mlp_0.lokr_w1, …)" in said
    assert "2 keys of biases or norms (double_blocks.0.img_attn.norm.query_norm.scale, lora_unet" in said
    assert said.endswith("1 unknown (lora_unet_input_blocks_1_0.alpha)")
