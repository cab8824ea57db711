"""A model of which no file exists: random weights, made where they are used.

For what does not depend on what is painted: time and memory. On the meta device the weights have no values
and no memory either.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers.models.clip.modeling_clip import CLIPTextModel
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.t5.modeling_t5 import T5EncoderModel
from transformers.models.t5.tokenization_t5 import T5Tokenizer

from kernels.ops import Ops
from model.autoencoder import Autoencoder
from model.config import ScheduleConfig
from model.info import PipelineInfo
from model.layout import Numerics
from model.lending import Memory
from model.pipeline import Pipeline
from model.quantization import Quantization, QuantizedLinear
from model.sizes import Sizes
from model.text import CLIP_LENGTH, T5, Clip
from model.transformer import Transformer

TXT_ROWS = 256
STEPS = 4


def random_pipeline(
    sizes: Sizes,
    ops: Ops,
    *,
    device: torch.device,
    dtype: torch.dtype,
    numerics: Numerics,
    quantization: Quantization = Quantization.NONE,
    memory: Memory = Memory.FULL,
) -> Pipeline:
    """Build a pipeline with the weights that PyTorch and transformers begin a training with.

    They are of a size that keeps activations at theirs from layer to layer, so nothing overflows. The same
    sizes, dtype and device give the same weights, also where these are quantised afterwards. The tokenizers
    are those of transformers without a vocabulary, since every prompt becomes equally long anyway. No prompt
    is kept.
    """
    torch.manual_seed(0)
    with device, _default_dtype(dtype):
        transformer, autoencoder = Transformer(sizes.transformer, ops), Autoencoder(sizes.autoencoder, ops)
        clip, t5 = CLIPTextModel(sizes.clip), T5EncoderModel(sizes.t5)
    modules: tuple[nn.Module, ...] = (transformer, autoencoder, clip, t5)
    for module in modules:
        module.eval().requires_grad_(False)
    transformer.quantize(quantization)
    for module in transformer.modules():
        if isinstance(module, QuantizedLinear):
            module.take(module.weight)
    autoencoder.to_channels_last()
    clip_tokenizer = CLIPTokenizer(model_max_length=CLIP_LENGTH)
    t5_tokenizer = T5Tokenizer(model_max_length=TXT_ROWS)
    info = PipelineInfo(
        name="random",
        digest="",
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        numerics=numerics.value,
        quantize="none" if quantization is Quantization.NONE else "fp8",
        guidance_embed=sizes.transformer.guidance_embed,
        default_width=sizes.autoencoder.sample_size,
        default_height=sizes.autoencoder.sample_size,
        default_steps=STEPS,
        default_sequence_length=TXT_ROWS,
    )
    return Pipeline(
        info=info,
        transformer=transformer,
        autoencoder=autoencoder,
        clip=Clip(clip, clip_tokenizer, device=device, memory=memory),
        t5=T5(t5, t5_tokenizer, ops, device=device, memory=memory),
        schedule=ScheduleConfig(),
        conditioning_cache_bytes=0,
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
