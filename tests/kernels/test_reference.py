"""The reference operations against PyTorch's own, in the regimes where a wrong detail shows."""

import pytest
import torch
from torch import Tensor

from kernels import reference as ops

LENGTHS = (5, 1, 18)
ROWS = sum(LENGTHS)


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
        ops.modulated_norm(x, shift, factor, LENGTHS), expected.float(), rtol=1e-4, atol=1e-5
    )


def test_gated_residual_uses_each_samples_own_gate() -> None:
    x, y, gate = rows(16), rows(16, seed=1), torch.randn(3, 16)
    torch.testing.assert_close(ops.gated_residual(x, gate, y, LENGTHS), x + per_sample(gate) * y)


def test_gated_residual_in_float16_stays_finite() -> None:
    x = torch.full((ROWS, 16), 60000.0, dtype=torch.float16)
    out = ops.gated_residual(x, torch.ones(3, 16, dtype=torch.float16), x, LENGTHS)
    assert out.max().item() == 65504


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


def test_qk_norm_rope_unpacks_q_k_v_head_major() -> None:
    qkv = rows(3 * 2 * 8)
    cos, sin = torch.ones(ROWS, 4), torch.zeros(ROWS, 4)
    q, k, v = ops.qk_norm_rope(qkv, torch.ones(8), torch.full((8,), 2.0), cos, sin)
    torch.testing.assert_close(q[:, 1], ops.rms_norm(qkv[:, 8:16], torch.ones(8)))
    torch.testing.assert_close(k[:, 0], 2 * ops.rms_norm(qkv[:, 16:24], torch.ones(8)))
    assert torch.equal(v[:, 1], qkv[:, 40:48])


def test_attention_stays_within_each_sample() -> None:
    q, k, v = rows(2, 8), rows(2, 8, seed=1), rows(2, 8, seed=2)
    out = ops.attention(q, k, v, LENGTHS)
    start = 0
    for length in LENGTHS:
        own = slice(start, start + length)
        scores = torch.einsum("ihd,jhd->hij", q[own].double(), k[own].double()) / 8**0.5
        expected = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[own].double()).flatten(1)
        torch.testing.assert_close(out[own], expected.float(), rtol=1e-4, atol=1e-5)
        start += length


def test_euler_step_moves_along_the_velocity() -> None:
    latents, velocity = rows(64), rows(64, seed=1)
    torch.testing.assert_close(ops.euler_step(latents, velocity, 0.75, 0.5), latents - 0.25 * velocity)


def test_to_pixels_rounds_half_to_even() -> None:
    values = torch.tensor([-1.0, -0.5, 0.0, 0.00392, 0.5, 1.0, -7.0, 7.0])
    image = values.view(1, 1, -1).expand(3, 1, -1)
    pixels = ops.to_pixels(image)
    assert pixels.shape == (1, 8, 3)
    assert pixels[0, :, 0].tolist() == [0, 64, 128, 128, 191, 255, 0, 255]
