"""The transformer's time embedding, its names at full size, and that samples do not see each other."""

import random

import pytest
import torch

from kernels.cases import Dimensions
from kernels.dispatch import KernelsName, choose
from model.config import TransformerConfig
from model.layout import Layout, Numerics, Shape
from model.transformer import Transformer, scaled_time, sinusoid

SMALL = TransformerConfig(
    hidden_size=96,
    num_heads=3,
    mlp_size=384,
    depth_double=1,
    depth_single=2,
    text_width=32,
    pooled_width=24,
    rope_axes=(4, 14, 14),
)


def test_sinusoid_has_the_published_values() -> None:
    (embedded,) = sinusoid(torch.tensor([750.0]))
    published = {0: -0.6669830, 1: 0.8797563, 2: -0.6700845, 3: 0.3662670, 127: 0.9967539}
    published |= {128: 0.7450730, 129: 0.4754250, 130: 0.7422848, 131: 0.9305098, 255: 0.0805083}
    for index, value in published.items():
        assert embedded[index].item() == pytest.approx(value, abs=5e-5)


def test_time_is_rounded_to_the_models_dtype() -> None:
    assert scaled_time(torch.tensor([0.75]), torch.bfloat16).item() == 752
    assert scaled_time(torch.tensor([0.75]), torch.float32).item() == 750


@pytest.mark.parametrize(
    ("guidance", "tensors", "parameters"), [(False, 776, 11_891_178_560), (True, 780, 11_901_408_320)]
)
def test_full_size_has_the_tensors_of_the_published_file(
    guidance: bool, tensors: int, parameters: int
) -> None:
    with torch.device("meta"):
        state = Transformer(TransformerConfig(guidance_embed=guidance)).state_dict()
    assert len(state) == tensors
    assert sum(tensor.numel() for tensor in state.values()) == parameters
    assert state["double_blocks.18.img_attn.qkv.weight"].shape == (9216, 3072)
    assert state["double_blocks.0.txt_attn.norm.key_norm.scale"].shape == (128,)
    assert state["single_blocks.37.linear2.weight"].shape == (3072, 15360)
    assert state["final_layer.adaLN_modulation.1.weight"].shape == (6144, 3072)


@pytest.mark.parametrize(
    ("dtype", "kernels"),
    [(torch.float32, "auto"), (torch.float32, "reference"), (torch.bfloat16, "auto")],
    ids=["float32", "float32-reference", "bfloat16"],
)
@pytest.mark.parametrize("threads", [1, 2, 3])
@torch.inference_mode()
def test_in_exact_numerics_neighbours_change_no_bit(
    dtype: torch.dtype, kernels: KernelsName, threads: int
) -> None:
    rng = random.Random(threads)
    torch.manual_seed(threads)
    ops = choose(
        kernels,
        device=torch.device("cpu"),
        dtype=dtype,
        exact=True,
        dimensions=Dimensions(heads=3, head_dim=32),
    )
    transformer = Transformer(SMALL, ops).to(dtype)
    shapes = [Shape(64, 16, 16), Shape(77, 17, 31), Shape(33, 16, 24), Shape(128, 20, 16)]
    images = [torch.randn(shape.img_rows, 64, dtype=dtype) for shape in shapes]
    texts = [torch.randn(shape.txt_rows, 96, dtype=dtype) for shape in shapes]
    mods = [transformer.modulate(torch.tensor([0.5]), torch.randn(24, dtype=dtype), None) for _ in shapes]

    def velocities(indices: list[int]) -> list[torch.Tensor]:
        layout = Layout.build(
            [shapes[i] for i in indices], config=SMALL, numerics=Numerics.EXACT, device=torch.device("cpu")
        )
        img, txt, mod = (torch.cat([part[i] for i in indices]) for part in (images, texts, mods))
        return list(torch.split(transformer(img, txt, mod, layout), layout.img_lengths))

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = [velocities([i])[0] for i in range(len(shapes))]
        for _ in range(3):
            company = rng.sample(range(len(shapes)), rng.randint(2, len(shapes)))
            for index, velocity in zip(company, velocities(company), strict=True):
                assert torch.equal(velocity, alone[index])
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def test_fast_numerics_move_a_sample_within_rounding_only() -> None:
    torch.manual_seed(0)
    transformer = Transformer(SMALL)
    shapes = [Shape(64, 16, 16), Shape(33, 17, 31)]
    img = torch.randn(sum(shape.img_rows for shape in shapes), 64)
    txt, mod = torch.randn(97, 96), transformer.modulate(torch.tensor([1.0, 0.5]), torch.randn(24), None)
    both = [
        transformer(img, txt, mod, Layout.build(shapes, config=SMALL, numerics=n, device=torch.device("cpu")))
        for n in Numerics
    ]
    assert (both[0] - both[1]).norm() / both[0].norm() < 1e-5
