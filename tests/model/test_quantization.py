"""The transformer in eight bits: which linears, from which files, and what it does to pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kernels.float8 import FLOAT8
from kernels.ops import reference_ops, triton_ops
from model.config import TransformerConfig
from model.layout import Layout, Numerics, Shape
from model.pipeline import Pipeline
from model.quantization import Quantization, QuantizedLinear, choose_quantization
from model.transformer import Transformer
from tests.model.conftest import Oracle

CPU = torch.device("cpu")
CONFIG = TransformerConfig(
    hidden_size=64,
    num_heads=2,
    mlp_size=128,
    depth_double=1,
    depth_single=2,
    text_width=32,
    pooled_width=24,
    rope_axes=(4, 14, 14),
)


def load(folder: Path, quantize: str, dtype: torch.dtype = torch.float32) -> Pipeline:
    return Pipeline.load(folder, device=CPU, dtype=dtype, numerics=Numerics.EXACT, quantize=quantize)


def quantized_names(transformer: torch.nn.Module) -> set[str]:
    return {name for name, module in transformer.named_modules() if isinstance(module, QuantizedLinear)}


def test_every_linear_of_the_blocks_is_quantised_and_nothing_else() -> None:
    with torch.device("meta"):
        transformer = Transformer(TransformerConfig())
        transformer.quantize(Quantization.WEIGHTS_AND_INPUTS)
    streams = {
        f"{stream}_{part}"
        for stream in ("img", "txt")
        for part in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2")
    }
    assert quantized_names(transformer) == {
        *(f"double_blocks.{i}.{name}" for i in range(19) for name in streams),
        *(f"single_blocks.{i}.{name}" for i in range(38) for name in ("linear1", "linear2")),
    }
    parameters = sum(transformer.get_submodule(name).weight.numel() for name in quantized_names(transformer))
    assert parameters == 912 * 3072**2  # 8.6 of 11.9 billion


def test_sides_that_no_product_takes_stay_as_they_are() -> None:
    with torch.device("meta"):
        transformer = Transformer(TransformerConfig(hidden_size=72, num_heads=3, mlp_size=144))
        transformer.quantize(Quantization.WEIGHTS)
    assert quantized_names(transformer) == set()


def test_pictures_stay_close(oracle: Oracle) -> None:
    _, folder = oracle()
    exact, eight = (load(folder, name) for name in ("none", "fp8"))
    assert (exact.info.quantize, eight.info.quantize) == ("none", "fp8")
    assert exact.info.digest == eight.info.digest
    options = {"seeds": [3], "width": 256, "height": 256, "steps": 2, "max_sequence_length": 64}
    (plain,), (quantised,) = (each.generate(["a red circle"], **options) for each in (exact, eight))
    away = np.abs(plain.astype(float) - quantised.astype(float)).mean()
    assert 0 < away < 4  # of 255: it is another computation, and not another picture


def test_weights_are_eight_bits_and_the_rest_is_not(oracle: Oracle) -> None:
    _, folder = oracle()
    transformer = load(folder, "fp8", torch.bfloat16).transformer
    block = transformer.single_blocks[0]
    assert block.linear1.weight.dtype == FLOAT8
    assert block.linear1.scale.shape == (block.linear1.out_features, 1)
    others = {name: p.dtype for name, p in transformer.named_parameters() if p.dtype != torch.bfloat16}
    assert {name.removesuffix(".weight") for name in others} == quantized_names(transformer)


def quantised_transformers() -> tuple[Transformer, Transformer, Transformer]:
    """The same weights plain, with weights in eight bits, and with inputs so too."""
    torch.manual_seed(0)
    plain = Transformer(CONFIG)
    made = []
    for quantization in (Quantization.WEIGHTS, Quantization.WEIGHTS_AND_INPUTS):
        transformer = Transformer(CONFIG)
        transformer.load_state_dict(plain.state_dict())
        transformer.quantize(quantization)
        for module in transformer.modules():
            if isinstance(module, QuantizedLinear):
                module.take(module.weight.detach())
        made.append(transformer)
    return plain, made[0], made[1]


def step(transformer: Transformer, shapes: list[Shape]) -> list[torch.Tensor]:
    """The velocity of every sample; the rows of a shape are always the same ones."""
    layout = Layout.build(shapes, config=CONFIG, numerics=Numerics.EXACT, device=CPU)
    imgs, txts = (
        [torch.randn(rows, 64, generator=torch.Generator().manual_seed(rows)) for rows in lengths]
        for lengths in ([shape.img_rows for shape in shapes], [shape.txt_rows for shape in shapes])
    )
    modulation = transformer.modulate(torch.tensor([1.0]), torch.linspace(-1, 1, 24), None)
    velocity = transformer(torch.cat(imgs), torch.cat(txts), modulation.repeat(len(shapes), 1), layout)
    return list(torch.split(velocity, [shape.img_rows for shape in shapes]))


@torch.inference_mode()
def test_weights_alone_lose_less_than_weights_and_inputs() -> None:
    plain, weights, both = quantised_transformers()
    shapes = [Shape(5, 3, 4), Shape(9, 4, 4)]
    exact, near, far = (torch.cat(step(each, shapes)) for each in (plain, weights, both))
    away, further = ((each - exact).norm() / exact.norm() for each in (near, far))
    assert 1e-4 < away < further < 0.1


@torch.inference_mode()
def test_in_exact_numerics_neighbours_change_no_bit() -> None:
    *_, both = quantised_transformers()
    shapes = [Shape(5, 3, 4), Shape(9, 4, 4), Shape(16, 5, 3)]
    together = step(both, shapes)
    assert torch.equal(step(both, shapes[:1])[0], together[0])
    assert torch.equal(step(both, shapes[:2])[1], together[1])


@torch.inference_mode()
def test_the_kernels_agree_with_the_reference() -> None:
    *_, both = quantised_transformers()
    expected = torch.cat(step(both, [Shape(5, 3, 4), Shape(9, 4, 4)]))
    for module in both.modules():
        if hasattr(module, "ops"):
            assert module.ops == reference_ops()
            module.ops = triton_ops()
    actual = torch.cat(step(both, [Shape(5, 3, 4), Shape(9, 4, 4)]))
    # A value that the last bit of float32 moves over a border moves by a digit: 2^-4 of it, in few of many.
    assert (actual - expected).norm() / expected.norm() < 5e-3


def test_what_eight_bits_mean_depends_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(name: str, device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> Quantization:
        return choose_quantization(name, device=torch.device(device), dtype=dtype)

    assert chosen("none") is Quantization.NONE
    assert chosen("fp8", "cpu", torch.float32) is Quantization.WEIGHTS_AND_INPUTS
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert chosen("fp8", dtype=torch.float16) is Quantization.WEIGHTS
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert chosen("fp8") is Quantization.WEIGHTS_AND_INPUTS
    with pytest.raises(
        ValueError, match=r"quantize fp8 with dtype torch.float16 on cuda; allowed: dtype bfloat16"
    ):
        chosen("fp8", dtype=torch.float16)
