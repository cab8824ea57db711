"""Which implementation is chosen, and that the whole transformer and autoencoder run on either."""

import inspect
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from kernels import activation, attention, matmul, onednn, reference
from kernels.cases import Case, Dimensions, cases
from kernels.dispatch import choose, trusted
from kernels.ops import Ops, reference_ops, triton_ops, with_vendor_products
from model.autoencoder import Autoencoder
from model.config import AutoencoderConfig, TransformerConfig
from model.layout import Layout, Numerics, Shape
from model.transformer import Transformer
from tests.kernels.worlds import DEVICE, dtypes

SMALL_CASES = Dimensions(heads=2, head_dim=32, text_width=48, channels=(8, 16), norm_groups=4)
SMALL = TransformerConfig(
    hidden_size=64,
    num_heads=2,
    mlp_size=128,
    depth_double=2,
    depth_single=2,
    text_width=32,
    pooled_width=24,
    rope_axes=(4, 14, 14),
)


def chosen(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Ops:
    return choose(name, device=torch.device(device), dtype=dtype, exact=True, dimensions=SMALL_CASES)


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_a_cpu_runs_the_reference(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kernels.dispatch"):
        assert chosen(name, dtype=torch.bfloat16) == reference_ops()
    assert caplog.messages == ["operations: the reference"]


@pytest.mark.skipif(not onednn.is_available(), reason="oneDNN is part of PyTorch on x86 only")
def test_in_float32_its_products_are_those_of_onednn() -> None:
    expected = replace(reference_ops(), linear=onednn.linear, linear_gelu=onednn.linear_gelu)
    assert chosen("auto") == expected
    assert chosen("reference") == reference_ops()


def test_triton_and_the_reference_can_be_asked_for() -> None:
    assert chosen("triton").attention is attention.attention
    assert chosen("triton").linear is matmul.linear
    assert chosen("triton").gelu_tanh is activation.gelu_tanh
    assert chosen("reference", "cuda").attention is reference.attention


def test_triton_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"kernels triton on cpu: .*allowed here: auto, reference"):
        chosen("triton")


def small_cases(dtype: torch.dtype = torch.float32, sides: Sequence[int] = (48, 32)) -> Iterator[Case]:
    return cases(sides, dtype=dtype, device=DEVICE, dimensions=SMALL_CASES)


@dtypes
def test_kernels_that_agree_with_the_reference_are_trusted(dtype: torch.dtype) -> None:
    """Of two pictures in float32; what another dtype changes one shows too, in a third of the time."""
    ops = triton_ops()
    assert trusted(ops, small_cases(dtype, (48, 32) if dtype is torch.float32 else (16,))) == ops


def raises(*arguments: object) -> Tensor:
    raise RuntimeError("no such instruction")


def zeros(x: Tensor, products: Sequence[int], out: Tensor) -> Tensor:
    return out.zero_()


def not_numbers(x: Tensor, products: Sequence[int], out: Tensor) -> Tensor:
    return out.fill_(torch.nan)


def beside_its_columns(x: Tensor, products: Sequence[int], out: Tensor) -> Tensor:
    reference.gelu_tanh(x, products, out)
    assert out._base is not None
    out._base[:, 0] = 1
    return out


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (zeros, "is off by 1 of the norm"),
        (not_numbers, "is off by nan of the norm"),
        (beside_its_columns, r"is off by 0\.\d+ of the norm"),
        (raises, "fails: no such instruction"),
    ],
)
def test_a_kernel_that_does_not_is_replaced_and_only_that_one(
    broken: Callable[..., Tensor], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    ops = replace(reference_ops(), gelu_tanh=broken)
    assert trusted(ops, small_cases()) == reference_ops()
    (said,) = caplog.messages
    assert re.fullmatch(f"operation gelu_tanh: the kernel {message}; the reference runs", said)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 3e-4), (torch.float16, 2e-3), (torch.bfloat16, 16e-3)], ids=str
)
def test_what_rounding_does_not_explain_is_not_trusted(dtype: torch.dtype, error: float) -> None:
    def biased(x: Tensor, scale: Tensor) -> Tensor:
        return ((1 + error) * reference.rms_norm(x.double(), scale.double())).to(dtype)

    assert trusted(replace(reference_ops(), rms_norm=biased), small_cases(dtype)) == (reference_ops())


@pytest.mark.parametrize("op", [field.name for field in fields(Ops)])
def test_both_implementations_take_the_same_arguments(op: str) -> None:
    assert inspect.signature(getattr(triton_ops(), op)) == inspect.signature(getattr(reference, op))


def test_the_reference_adds_in_the_norm() -> None:
    assert reference_ops().linear_residual is None
    assert with_vendor_products(triton_ops()).linear_residual is None


@torch.inference_mode()
def test_the_whole_transformer_runs_on_the_kernels() -> None:
    torch.manual_seed(0)
    plain = Transformer(SMALL, reference_ops()).to(DEVICE)
    fused = Transformer(SMALL, triton_ops()).to(DEVICE)
    fused.load_state_dict(plain.state_dict())
    shapes = [Shape(7, 3, 5), Shape(1, 9, 15), Shape(64, 8, 8)]
    layout = Layout.build(shapes, config=SMALL, numerics=Numerics.EXACT, device=DEVICE)
    img = torch.randn(sum(shape.img_rows for shape in shapes), 64, device=DEVICE)
    txt = torch.randn(sum(shape.txt_rows for shape in shapes), 64, device=DEVICE)
    sigmas, pooled = torch.tensor([1.0, 0.75, 0.5], device=DEVICE), torch.randn(24, device=DEVICE)
    modulation = plain.modulate(sigmas, pooled, None)
    expected = plain(img, txt, modulation, layout)
    actual = fused(img, txt, modulation, layout)
    assert (actual - expected).norm() / expected.norm() < 1e-5


@torch.inference_mode()
def test_the_autoencoder_runs_on_the_kernels() -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(channels=(8, 16), blocks_per_level=1, norm_groups=4, sample_size=16)
    plain, fused = Autoencoder(config, reference_ops()), Autoencoder(config, triton_ops())
    fused.load_state_dict(plain.state_dict())
    fused.to_channels_last()
    plain.to(DEVICE)
    fused.to(DEVICE)
    latents, image = torch.randn(1, 16, 6, 4, device=DEVICE), torch.randn(1, 3, 12, 8, device=DEVICE)
    for expected, actual in (
        (plain.decode(latents), fused.decode(latents)),
        (plain.encode(image), fused.encode(image)),
    ):
        assert (actual - expected).norm() / expected.norm() < 1e-5
