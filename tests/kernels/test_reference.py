"""The reference operations against PyTorch's own, in the regimes where a wrong detail shows."""

import pytest
import torch
from torch import Tensor

from kernels import reference as ops
from kernels.rows import Owners, Sequences, spans

LENGTHS = (5, 1, 18)
ROWS = sum(LENGTHS)
OWNERS = Owners.build(spans(LENGTHS), torch.device("cpu"))


def rows(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(seed))


def per_sample(vectors: Tensor) -> Tensor:
    return vectors.repeat_interleave(torch.tensor(LENGTHS), dim=0)


@pytest.mark.parametrize("products", [(ROWS,), LENGTHS])
def test_linear_is_a_matrix_product_however_it_is_cut(products: tuple[int, ...]) -> None:
    x, weight, bias = rows(32), torch.randn(48, 32), torch.randn(48)
    expected = (x.double() @ weight.double().T + bias.double()).float()
    torch.testing.assert_close(ops.linear(x, weight, bias, products), expected, rtol=1e-5, atol=1e-5)


def test_gelu_is_the_tanh_approximation() -> None:
    x = rows(64, scale=2)
    inner = (2 / torch.pi) ** 0.5 * (x.double() + 0.044715 * x.double() ** 3)
    expected = (0.5 * x.double() * (1 + torch.tanh(inner))).float()
    torch.testing.assert_close(ops.gelu_tanh(x, LENGTHS), expected, rtol=1e-5, atol=1e-6)
    erf = torch.nn.functional.gelu(x)
    assert (ops.gelu_tanh(x, LENGTHS) - erf).abs().max() > 1e-4


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rms_norm_keeps_its_epsilon(scale: float) -> None:
    x, weight = rows(4, 32, scale=scale), torch.linspace(0.5, 2, 32)
    exact = x.double()
    expected = exact / (exact.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    torch.testing.assert_close(ops.rms_norm(x, weight), expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_modulated_norm_uses_each_samples_own_vectors(scale: float) -> None:
    x, shift, factor = rows(32, scale=scale), torch.randn(3, 32), torch.randn(3, 32)
    exact = x.double()
    centred = exact - exact.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = normed * (1 + per_sample(factor)) + per_sample(shift)
    torch.testing.assert_close(
        ops.modulated_norm(x, shift, factor, OWNERS), expected.float(), rtol=1e-4, atol=1e-5
    )


def test_gated_residual_norm_adds_in_place_and_norms_the_sum() -> None:
    x, y, (gate, shift, factor) = rows(32), rows(32, seed=1), torch.randn(3, 3, 32)
    expected = x + per_sample(gate) * y
    normed = ops.gated_residual_norm(x, gate, y, shift, factor, OWNERS)
    torch.testing.assert_close(x, expected)
    torch.testing.assert_close(normed, ops.modulated_norm(expected, shift, factor, OWNERS))


def test_gated_residual_norm_in_float16_stays_finite() -> None:
    x = torch.full((ROWS, 16), 60000.0, dtype=torch.float16)
    ones = torch.ones(3, 16, dtype=torch.float16)
    normed = ops.gated_residual_norm(x, ones, x.clone(), ones, ones, OWNERS)
    assert x.max().item() == 65504
    assert normed.isfinite().all()


def test_rope_rotates_adjacent_pairs() -> None:
    x = torch.zeros(1, 1, 8)
    x[0, 0, 2] = 1.0  # the even half of pair 1
    angle = torch.tensor([[0.0, 0.5, 0.0, 0.0]])
    rotated = ops.rope(x, angle.cos(), angle.sin())[0, 0]
    expected = torch.zeros(8)
    expected[2], expected[3] = angle[0, 1].cos(), angle[0, 1].sin()
    torch.testing.assert_close(rotated, expected)


def test_rope_keeps_scores_relative() -> None:
    """A query at p and a key at q meet in an angle that depends on p - q only."""
    q, k = torch.randn(1, 1, 8), torch.randn(1, 1, 8)
    frequencies = torch.tensor([1.0, 0.5, 0.1, 0.01])

    def score(p: float, q_position: float) -> float:
        turned = [
            ops.rope(t, (f * frequencies)[None].cos(), (f * frequencies)[None].sin())
            for t, f in ((q, p), (k, q_position))
        ]
        return float((turned[0] * turned[1]).sum())

    assert score(7, 3) == pytest.approx(score(14, 10), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(3, 7), abs=1e-3)


def test_qk_norm_rope_changes_q_and_k_where_they_lie() -> None:
    wide = rows(3 * 2 * 8 + 5)
    before, qkv = wide.clone(), wide[:, :48]
    cos, sin = torch.ones(ROWS, 4), torch.zeros(ROWS, 4)
    ops.qk_norm_rope(qkv, torch.ones(8), torch.full((8,), 2.0), cos, sin)
    torch.testing.assert_close(qkv[:, 8:16], ops.rms_norm(before[:, 8:16], torch.ones(8)))
    torch.testing.assert_close(qkv[:, 16:24], 2 * ops.rms_norm(before[:, 16:24], torch.ones(8)))
    assert torch.equal(wide[:, 32:], before[:, 32:])


def test_attention_stays_within_each_sample() -> None:
    q, k, v = rows(2, 8), rows(2, 8, seed=1), rows(2, 8, seed=2)
    txt, img = spans((2, 1, 7)), spans((3, 0, 11), start=10)
    sequences = Sequences.build(list(zip(txt, img, strict=True)), torch.device("cpu"))
    wide = torch.full((ROWS, 20), torch.nan)
    out = ops.attention(q, k, v, sequences, out=wide[:, 2:18])
    for pair in sequences.spans:
        own = torch.cat([torch.arange(span.start, span.stop) for span in pair])
        scores = torch.einsum("ihd,jhd->hij", q[own].double(), k[own].double()) / 8**0.5
        expected = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[own].double()).flatten(1)
        torch.testing.assert_close(out[own], expected.float(), rtol=1e-4, atol=1e-5)
    assert wide[:, :2].isnan().all()


def test_euler_step_moves_each_sample_by_its_own_step() -> None:
    latents, velocity, deltas = rows(64), rows(64, seed=1), torch.tensor([-0.25, -1.0, -0.5])
    moved = ops.euler_step(latents, velocity, deltas, OWNERS)
    torch.testing.assert_close(moved, latents + per_sample(deltas[:, None]) * velocity)


@pytest.mark.parametrize("silu", [True, False])
def test_group_norm_silu_is_both_in_a_row(silu: bool) -> None:
    x, weight, bias = torch.randn(2, 8, 5, 3), torch.randn(8), torch.randn(8)
    grouped = x.double().view(2, 4, -1)
    variance = grouped.var(-1, correction=0, keepdim=True)
    normed = ((grouped - grouped.mean(-1, keepdim=True)) / (variance + 1e-6).sqrt()).view_as(x)
    normed = normed * weight[:, None, None] + bias[:, None, None]
    expected = normed * torch.sigmoid(normed) if silu else normed
    out = ops.group_norm_silu(x, 4, weight, bias, 1e-6, silu=silu)
    torch.testing.assert_close(out, expected.float(), rtol=1e-4, atol=1e-5)


def test_to_pixels_rounds_half_to_even() -> None:
    values = torch.tensor([-1.0, -0.5, 0.0, 0.00392, 0.5, 1.0, -7.0, 7.0])
    image = values.view(1, 1, -1).expand(3, 1, -1)
    pixels = ops.to_pixels(image)
    assert pixels.shape == (1, 8, 3)
    assert pixels[0, :, 0].tolist() == [0, 64, 128, 128, 191, 255, 0, 255]
