"""The text encoders: CLIP's pooled vector and T5's sequence, through transformers and their tokenizers.

Both published codes run T5 over the padding without a mask, so the padded length is part of the result.
Caching is the pipeline's business.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.t5.modeling_t5 import T5EncoderModel
from transformers.models.t5.tokenization_t5 import T5Tokenizer

CLIP_LENGTH = 77


class Clip:
    """CLIP ViT-L/14's text tower."""

    def __init__(self, model: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the pooled vectors [texts, width]: the state at the first end-of-text token."""
        ids = _token_ids(self.tokenizer, texts, length=CLIP_LENGTH).to(self.model.device)
        positions = torch.arange(CLIP_LENGTH, device=ids.device).unsqueeze(0)
        pooled: Tensor = self.model(input_ids=ids, position_ids=positions).pooler_output
        return pooled


class T5:
    """The encoder of T5 v1.1."""

    def __init__(self, model: T5EncoderModel, tokenizer: T5Tokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def encode(self, texts: Sequence[str], *, length: int) -> Tensor:
        """Return the states [texts, length, width] of all positions, the padding included."""
        ids = _token_ids(self.tokenizer, texts, length=length).to(self.model.device)
        states: Tensor = self.model(input_ids=ids).last_hidden_state
        return states


def load_tokenizers(clip_folder: Path, t5_folder: Path) -> tuple[CLIPTokenizer, T5Tokenizer]:
    """Read both tokenizers from local folders; nothing is ever fetched."""
    return (
        CLIPTokenizer.from_pretrained(clip_folder, local_files_only=True),
        T5Tokenizer.from_pretrained(t5_folder, local_files_only=True),
    )


def _token_ids(tokenizer: CLIPTokenizer | T5Tokenizer, texts: Sequence[str], *, length: int) -> Tensor:
    """Tokenize to exactly `length` ids [texts, length]; what is longer is cut and still ends with eos."""
    encoded = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids
