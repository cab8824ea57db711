"""The arithmetic of a step, against what is known of FLUX.1 and against what PyTorch counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.bench.flops import step_flops
from model.config import TransformerConfig
from model.layout import Layout, Numerics, Shape
from model.transformer import Transformer


@pytest.mark.parametrize(
    ("side", "teraflops"), [(256, 6.81), (512, 17.69), (768, 37.66), (1024, 69.47), (1536, 185.15)]
)
def test_a_step_of_the_published_model(side: int, teraflops: float) -> None:
    shape = Shape(256, side // 16, side // 16)
    assert step_flops(TransformerConfig(), [shape]) / 1e12 == pytest.approx(teraflops, abs=0.006)


def test_samples_add_up() -> None:
    shapes = [Shape(256, 16, 16), Shape(77, 20, 31)]
    apart = sum(step_flops(TransformerConfig(), [shape]) for shape in shapes)
    assert step_flops(TransformerConfig(), shapes) == apart


def test_it_is_what_pytorch_counts() -> None:
    """All products of a step, with its text projection and modulation."""
    config = TransformerConfig(
        hidden_size=96, num_heads=3, mlp_size=320, depth_double=2, depth_single=3, rope_axes=(4, 14, 14)
    )
    transformer, shape = Transformer(config), Shape(12, 6, 7)
    layout = Layout.build([shape], config=config, numerics=Numerics.FAST, device=torch.device("cpu"))
    plain = sdpa_kernel(SDPBackend.MATH)  # whose products are counted one by one
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), plain:
        txt = transformer.project_text(torch.zeros(shape.txt_rows, config.text_width))
        mod = transformer.modulate(torch.ones(1), torch.zeros(config.pooled_width), None)
        transformer(torch.zeros(shape.img_rows, 64), txt, mod, layout)
    assert step_flops(config, [shape]) == counter.get_total_flops()
