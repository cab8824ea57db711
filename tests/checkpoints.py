"""Small random FLUX.1 pipelines of diffusers' own classes: the oracle, and what it saves is the input."""

import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

SENTENCES = """a red circle on a blue background
two small green stars above a large yellow moon at night
a photo of a house next to a tree in a meadow, by the sea, at sunset
three purple fish and four orange flowers in the desert
a picture with a black cat, a white cloud and a grey mountain under the sun
the quick brown fox jumps over 13 lazy dogs; pack my box with 5 dozen jugs (of liquor)!
""".splitlines()

T5_VOCAB = 256
SCHNELL_SCHEDULER: dict[str, Any] = {"shift": 1.0, "use_dynamic_shifting": False}
DEV_SCHEDULER: dict[str, Any] = {
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def random_pipeline(
    tokenizers: Path,
    *,
    seed: int = 0,
    dev: bool = False,
    small: bool = False,
    plain_autoencoder: bool = False,
    **sizes: Any,
) -> FluxPipeline:
    """Build a float32 pipeline of random weights; `tokenizers` is a folder of `write_tokenizers`.

    `dev` has the guidance embedding and the shifted schedule; `small` makes the activations that enter the
    norms so small that their epsilon counts; `plain_autoencoder` has 32 norm groups, which no tensor shape
    tells; `sizes` override the transformer's depths, heads and so on.
    """
    torch.manual_seed(seed)
    clip_tokenizer = CLIPTokenizer.from_pretrained(tokenizers / "tokenizer")
    transformer = FluxTransformer2DModel(
        **{
            "in_channels": 64,
            "num_layers": 2,
            "num_single_layers": 3,
            "attention_head_dim": 32,
            "num_attention_heads": 4,
            "joint_attention_dim": 64,
            "pooled_projection_dim": 128,
            "guidance_embeds": dev,
            "axes_dims_rope": (4, 14, 14),
            **sizes,
        }
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32, 32, 64, 64) if plain_autoencoder else (16, 32, 32, 32),
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=32 if plain_autoencoder else 8,
        sample_size=256,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=transformer.config.pooled_projection_dim,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,  # of 64, as every published CLIP has them
            bos_token_id=0,
            eos_token_id=2,  # as the published configuration has it
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=T5_VOCAB,
            d_model=transformer.config.joint_attention_dim,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    scheduler = FlowMatchEulerDiscreteScheduler(**(DEV_SCHEDULER if dev else SCHNELL_SCHEDULER))
    pipeline = FluxPipeline(
        scheduler=scheduler,
        vae=vae.eval(),
        text_encoder=clip.eval(),
        tokenizer=clip_tokenizer,
        text_encoder_2=t5.eval(),
        tokenizer_2=T5Tokenizer.from_pretrained(tokenizers / "tokenizer_2"),
        transformer=transformer.eval(),
    )
    _make_every_weight_count(pipeline)
    if small:
        _shrink(pipeline.transformer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _make_every_weight_count(pipeline: FluxPipeline) -> None:
    """Give norms, gates and biases random values: their initial ones and zeros hide mistakes."""
    for module in (pipeline.transformer, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
        for name, parameter in module.named_parameters():
            with torch.no_grad():
                if parameter.dim() == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                elif "shared" in name or "relative_attention_bias" in name:
                    parameter.normal_(std=0.5)


def _shrink(transformer: FluxTransformer2DModel) -> None:
    """Bring embeddings, q and k down to about 3e-3, whose squares stand beside an epsilon of 1e-6."""
    shrunk = ("x_embedder", "context_embedder", "to_q", "to_k", "add_q_proj", "add_k_proj")
    for name, parameter in transformer.named_parameters():
        if any(f"{part}." in name for part in shrunk):
            with torch.no_grad():
                parameter.mul_(3e-3)


def write_tokenizers(folder: Path) -> None:
    """Write `tokenizer/` (byte-level BPE, as CLIP's) and `tokenizer_2/` (SentencePiece unigram, as T5's)."""
    _write_clip_tokenizer(folder / "tokenizer")
    _write_t5_tokenizer(folder / "tokenizer_2")


def _write_clip_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    letters = [chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + n) for n in range(256 - len(letters))]  # GPT-2's alphabet of bytes
    merges = [
        ("t", "h"),
        ("th", "e</w>"),
        ("r", "e"),
        ("re", "d</w>"),
        ("b", "l"),
        ("c", "a"),
        ("ca", "t</w>"),
    ]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]  # end of text has the largest id, as in the published one
    vocab = {word: index for index, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    )


def _write_t5_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_prefix=str(folder / "spiece"),
        model_type="unigram",
        vocab_size=80,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 100},
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
