"""The two tokenizers, in the formats of the real ones, trained on the prompts of the world.

CLIP's is a byte-level BPE, so every text has tokens. T5's is a SentencePiece unigram model; transformers'
T5Tokenizer has no byte fallback (the published vocabulary has no bytes either), so a character that it has
never seen is `<unk>`.
"""

import json
from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.t5.tokenization_t5 import T5Tokenizer

T5_LENGTH = 128
_CLIP_MERGES = 900
_T5_VOCABULARY = 900


def train(prompts: list[str], folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Write `tokenizer/` and `tokenizer_2/` into `folder` and read them back as the server does."""
    _train_clip(prompts, folder / "tokenizer")
    _train_t5(prompts, folder / "tokenizer_2")
    return load(folder)


def load(folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer]:
    clip: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    t5: T5Tokenizer = T5Tokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True)
    return clip, t5


def _train_clip(prompts: list[str], folder: Path) -> None:
    """Train a BPE under CLIP's own rules; end of text has the largest id, where transformers looks for it."""
    folder.mkdir(parents=True, exist_ok=True)
    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    reference = CLIPTokenizer().backend_tokenizer
    backend.normalizer, backend.pre_tokenizer = reference.normalizer, reference.pre_tokenizer
    backend.train_from_iterator(
        prompts,
        trainers.BpeTrainer(
            vocab_size=512 + _CLIP_MERGES,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    merges = [tuple(merge) for merge in json.loads(backend.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]
    _write(folder / "vocab.json", {word: index for index, word in enumerate(words)})
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})


def _train_t5(prompts: list[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(prompts),
        model_prefix=str(folder / "spiece"),
        model_type="unigram",
        vocab_size=_T5_VOCABULARY,
        hard_vocab_limit=False,  # few prompts have fewer pieces
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "spiece.vocab").unlink()
    _write(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "T5Tokenizer", "model_max_length": T5_LENGTH, "extra_ids": 0},
    )


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
