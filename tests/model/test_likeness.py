"""What PSNR and SSIM make of pictures that differ in a known way."""

import numpy as np
import pytest

import model.likeness
from model.likeness import Likeness, likeness, main, summary

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (32, 48, 3), dtype=np.uint8)


def test_a_picture_is_like_itself() -> None:
    assert likeness(NOISE, NOISE) == Likeness(float("inf"), pytest.approx(1.0))


def test_psnr_is_that_of_the_squared_error() -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    assert likeness(grey, grey + 5).psnr == pytest.approx(10 * np.log10(255**2 / 25))


def test_ssim_of_flat_pictures_is_that_of_their_means() -> None:
    grey = np.full((16, 16, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 120 + c1) / (100**2 + 120**2 + c1)
    assert likeness(grey, grey + 20).ssim == pytest.approx(expected, abs=1e-6)


def test_ssim_sees_structure_where_psnr_sees_size() -> None:
    ramp = np.tile(np.arange(0, 192, 4, dtype=np.uint8)[None, :, None], (32, 1, 3))
    shifted, noisy = ramp + 8, (ramp + RNG.choice([-8, 8], ramp.shape)).clip(0, 255).astype(np.uint8)
    assert likeness(ramp, shifted).psnr == pytest.approx(likeness(ramp, noisy).psnr, abs=0.5)
    assert likeness(ramp, shifted).ssim > likeness(ramp, noisy).ssim + 0.2


def test_the_summary_has_means_and_worst_values() -> None:
    assert summary([Likeness(30, 0.9), Likeness(20, 0.7)]) == (
        "PSNR 25.0 dB (worst 20.0), SSIM 0.8000 (worst 0.7000)"
    )


def test_the_command_compares_eight_bits_with_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.likeness, "PROMPTS", model.likeness.PROMPTS[:1])
    assert main(["--quantize", "fp8", "--seeds", "2", "--side", "64", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.startswith("2 pictures: PSNR ")
