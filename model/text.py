"""The text encoders: CLIP's pooled vector and T5's sequence, through transformers and their tokenizers.

T5's norms run on our operations: in plain PyTorch and bfloat16 each is eight launches and two conversions.
Both published codes run T5 over the padding without a mask, so the padded length is part of the result.
Caching is the pipeline's business. Encoders whose weights are at home in host memory encode inside
`lender.lending()` (model/lending.py).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.t5.modeling_t5 import T5EncoderModel, T5LayerNorm
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from kernels.ops import Ops
from kernels.reference import NORM_EPS
from model.arena import Arena
from model.checkpoint import Checkpoint
from model.lending import Lender, Memory
from model.loading import Advance, Component, load_into
from model.safetensors_file import CheckpointError

CLIP_LENGTH = 77
Tokenizer = TypeVar("Tokenizer", CLIPTokenizer, T5Tokenizer)


class Clip:
    """CLIP ViT-L/14's text tower."""

    def __init__(
        self,
        model: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        *,
        device: torch.device,
        memory: Memory = Memory.FULL,
    ) -> None:
        """Encode on `device`, where the weights are unless `memory` says that they are at home elsewhere."""
        self.model = model
        self.tokenizer = tokenizer
        layers = [model.embeddings, *model.encoder.layers, model.final_layer_norm]
        self.lender = Lender(memory.groups(model, layers), device)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the pooled vectors [texts, width]: the state at the first end-of-text token."""
        ids = _token_ids(self.tokenizer, texts, length=CLIP_LENGTH).to(self.lender.device)
        positions = torch.arange(CLIP_LENGTH, device=ids.device).unsqueeze(0)
        pooled: Tensor = self.model(input_ids=ids, position_ids=positions).pooler_output
        return pooled


class T5:
    """The encoder of T5 v1.1; `model` gets the norms of `ops`."""

    def __init__(
        self,
        model: T5EncoderModel,
        tokenizer: T5Tokenizer,
        ops: Ops,
        *,
        device: torch.device,
        memory: Memory = Memory.FULL,
    ) -> None:
        """Encode on `device`, where the weights are unless `memory` says that they are at home elsewhere."""
        for name, norm in list(model.named_modules()):
            if isinstance(norm, T5LayerNorm) and norm.variance_epsilon == NORM_EPS:
                model.set_submodule(name, T5Norm(norm.weight, ops))
        self.model = model
        self.tokenizer = tokenizer
        encoder = model.encoder
        layers = [encoder.embed_tokens, *encoder.block, encoder.final_layer_norm]
        self.lender = Lender(memory.groups(model, layers), device)

    def encode(self, texts: Sequence[str], *, length: int) -> Tensor:
        """Return the states [texts, length, width] of all positions, the padding included."""
        ids = _token_ids(self.tokenizer, texts, length=length).to(self.lender.device)
        states: Tensor = self.model(input_ids=ids).last_hidden_state
        return states


class T5Norm(nn.Module):
    """T5's layer norm, which is an RMS norm, as an operation on rows; it rounds once instead of twice."""

    def __init__(self, weight: nn.Parameter, ops: Ops) -> None:
        super().__init__()
        self.weight = weight
        self.ops = ops

    def forward(self, states: Tensor) -> Tensor:
        """Norm the last dimension of `states` [texts, length, width], in the dtype of the weight."""
        return self.ops.rms_norm(states.flatten(0, -2), self.weight).view_as(states)


def load_encoders(
    checkpoint: Checkpoint,
    ops: Ops,
    *,
    device: torch.device,
    dtype: torch.dtype,
    memory: Memory,
    progress: Advance,
) -> tuple[Clip, T5, list[str]]:
    """Load both encoders, and return them with the digests of what was read. Raises `CheckpointError`.

    Unless `memory` is full, their weights go straight into host memory. T5 overflows in float16, so the
    encoders then run in bfloat16.
    """
    with torch.device("meta"):
        clip, t5 = CLIPTextModel(checkpoint.clip_config), T5EncoderModel(checkpoint.t5_config)
    place, arena = device, None
    if memory is not Memory.FULL:
        place, arena = torch.device("cpu"), Arena(pinned=device.type == "cuda")
    modules: list[tuple[nn.Module, Component]] = [(clip, checkpoint.clip), (t5, checkpoint.t5)]
    digests = [
        load_into(
            module.eval(),
            component,
            device=place,
            dtype=torch.bfloat16 if dtype == torch.float16 else dtype,
            arena=arena,
            progress=progress,
        )
        for module, component in modules
    ]
    clip_tokenizer = _load_tokenizer(CLIPTokenizer, checkpoint.clip_tokenizer)
    t5_tokenizer = _load_tokenizer(T5Tokenizer, checkpoint.t5_tokenizer)
    return (
        Clip(clip, clip_tokenizer, device=device, memory=memory),
        T5(t5, t5_tokenizer, ops, device=device, memory=memory),
        digests,
    )


def _load_tokenizer(kind: type[Tokenizer], folder: Path) -> Tokenizer:
    """Read a tokenizer from a local folder; nothing is ever fetched. Raises `CheckpointError`."""
    try:
        tokenizer: Tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: the tokenizer cannot be read: {reason}") from error
    return tokenizer


def _token_ids(tokenizer: CLIPTokenizer | T5Tokenizer, texts: Sequence[str], *, length: int) -> Tensor:
    """Tokenize to exactly `length` ids [texts, length]; what is longer is cut and still ends with eos."""
    encoded = tokenizer(
        list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    ids: Tensor = encoded.input_ids
    return ids
