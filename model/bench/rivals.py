"""diffusers as a contestant, on the very weights of our pipeline: eager, and compiled as it advises."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.models.t5.modeling_t5 import T5EncoderModel

from model.bench.contest import Mark, Work
from model.bench.ours import png
from model.config import AutoencoderConfig, TransformerConfig
from model.names import Naming, as_named, diffusers_autoencoder, diffusers_transformer
from model.pipeline import Pipeline, Pixels
from model.sizes import weight_bytes

Module = TypeVar("Module", bound=nn.Module)
ATTENTION = [  # cuDNN wherever it can: the autoencoder's heads of 512 are too wide for it
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


class Diffusers:
    """`FluxPipeline` as it comes; pictures of one size share its batch, sizes run one after another."""

    name = "diffusers"

    def __init__(self, pipeline: Pipeline) -> None:
        """Share the weights of `pipeline`, which are not quantised."""
        self.pipeline = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
            vae=_autoencoder(pipeline),
            text_encoder=pipeline.clip.model,
            tokenizer=pipeline.clip.tokenizer,
            text_encoder_2=_t5(pipeline),
            tokenizer_2=pipeline.t5.tokenizer,
            transformer=_transformer(pipeline),
        )
        self.pipeline.set_progress_bar_config(disable=True)

    @property
    def weight_bytes(self) -> int:
        parts = self.pipeline
        modules = (parts.transformer, parts.vae, parts.text_encoder, parts.text_encoder_2)
        return sum(map(weight_bytes, modules))

    @torch.no_grad()
    def run(self, work: Work, mark: Mark) -> list[Pixels]:
        """Make the pictures by size; what comes before the first step counts as a part of it."""
        made: dict[int, Pixels] = {}
        for side, numbered in groupby(sorted(enumerate(work.sides), key=_side), key=_side):
            numbers = [number for number, _ in numbered]
            images = self._pictures(work, side, numbers, mark)
            mark("decode")
            for number, image in zip(numbers, images, strict=True):
                png(image)
                made[number] = np.array(image)
            mark("png")
        return [made[number] for number in range(len(work.sides))]

    def _pictures(self, work: Work, side: int, numbers: list[int], mark: Mark) -> list[Image.Image]:
        def after_step(pipeline: object, step: int, time: object, tensors: dict[str, Any]) -> dict[str, Any]:
            mark("step")
            return tensors

        txt, pooled, _ = self.pipeline.encode_prompt(
            [work.prompts[number] for number in numbers], None, max_sequence_length=work.text_length
        )
        mark("text")
        images: list[Image.Image] = self.pipeline(
            prompt_embeds=txt,
            pooled_prompt_embeds=pooled,
            width=side,
            height=side,
            num_inference_steps=work.steps,
            max_sequence_length=work.text_length,
            guidance_scale=0.0,
            generator=[torch.Generator().manual_seed(number) for number in numbers],
            callback_on_step_end=after_step,
        ).images
        return images


class Compiled(Diffusers):
    """`FluxPipeline` with the transformer and the decoder compiled, channels last, and cuDNN's attention."""

    name = "diffusers compiled"

    def __init__(self, pipeline: Pipeline, *, mode: str, backend: str = "inductor") -> None:
        """Compile in a `mode` of torch.compile for the shapes of one piece of work."""
        super().__init__(pipeline)
        torch._dynamo.reset()  # what was compiled for other shapes
        self.name = f"diffusers compiled, {mode}"
        options = {"mode": mode} if backend == "inductor" else {}  # another has no modes
        self.pipeline.vae.to(memory_format=torch.channels_last)
        self.pipeline.transformer.compile(fullgraph=True, dynamic=False, backend=backend, **options)
        self.pipeline.vae.decoder.compile(fullgraph=True, dynamic=False, backend=backend, **options)

    def run(self, work: Work, mark: Mark) -> list[Pixels]:
        """As `Diffusers.run`."""
        with sdpa_kernel(ATTENTION, set_priority=True):
            return super().run(work, mark)


def _side(numbered: tuple[int, int]) -> int:
    return numbered[1]


def _t5(pipeline: Pipeline) -> T5EncoderModel:
    """Return transformers' own T5: ours runs its norms on our operations."""
    with torch.device("meta"):
        module = T5EncoderModel(pipeline.t5.model.config)
    module = _sharing(module, pipeline.t5.model, as_named)
    module.tie_weights()
    return module


def _transformer(pipeline: Pipeline) -> FluxTransformer2DModel:
    with torch.device("meta"):
        module = FluxTransformer2DModel(**_transformer_options(pipeline.transformer.config))
    return _sharing(module, pipeline.transformer, diffusers_transformer)


def _autoencoder(pipeline: Pipeline) -> AutoencoderKL:
    config = pipeline.autoencoder.config
    with torch.device("meta"):
        module = AutoencoderKL(**_autoencoder_options(config))
    return _sharing(module, pipeline.autoencoder, diffusers_autoencoder(len(config.channels)))


def _sharing(theirs: Module, ours: nn.Module, naming: Naming) -> Module:
    """Fill `theirs`, built on the meta device, with views of the parameters of `ours`."""
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    state = {
        name: part.reshape(shapes[name])
        for our_name, parameter in ours.state_dict().items()
        for name, part in _parts(our_name, parameter, naming, shapes)
    }
    theirs.load_state_dict(state, assign=True)
    theirs.eval()
    return theirs


def _parts(
    our_name: str, parameter: Tensor, naming: Naming, shapes: dict[str, torch.Size]
) -> Iterator[tuple[str, Tensor]]:
    """Yield what `parameter` is called there and the rows that it is; convolutions in their usual order."""
    recipe = naming(our_name)
    values = parameter.contiguous()
    if recipe.swap_halves:
        values = torch.cat(values.chunk(2)[::-1])
    names = [part[0] for part in recipe.parts]
    yield from zip(names, torch.split(values, [shapes[name][0] for name in names]), strict=True)


def _transformer_options(config: TransformerConfig) -> dict[str, Any]:
    return {
        "in_channels": config.in_channels,
        "num_layers": config.depth_double,
        "num_single_layers": config.depth_single,
        "attention_head_dim": config.head_dim,
        "num_attention_heads": config.num_heads,
        "joint_attention_dim": config.text_width,
        "pooled_projection_dim": config.pooled_width,
        "guidance_embeds": config.guidance_embed,
        "axes_dims_rope": config.rope_axes,
    }


def _autoencoder_options(config: AutoencoderConfig) -> dict[str, Any]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * len(config.channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(config.channels),
        "block_out_channels": config.channels,
        "layers_per_block": config.blocks_per_level,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "sample_size": config.sample_size,
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
