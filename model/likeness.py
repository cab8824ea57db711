"""How alike two pictures of the same request are: what another precision costs.

`python -m model.likeness` makes pictures in two precisions and prints what lies between them. PSNR and SSIM
compare pixels; whether a picture still shows what was asked for is another question.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.checkpoint import CheckpointError
from model.device import DtypeName, choose_device, choose_dtype, choose_numerics
from model.generate import EMBEDDED_MODEL
from model.pipeline import Pipeline, Pixels
from model.quantization import QuantizeName

PROMPTS = (
    "a red circle on a blue background",
    "two green stars",
    "a yellow moon above a house at night",
    "a photo of a cat",
    "a small boat on the sea at sunset",
    "three orange flowers in a meadow",
    "a black and white picture of a mountain",
    "a purple fish to the left of a white cloud",
)
WINDOW, SIGMA = 11, 1.5  # of SSIM, as published


@dataclass(frozen=True, slots=True)
class Likeness:
    """PSNR in dB and SSIM of one pair of pictures."""

    psnr: float
    ssim: float


def likeness(picture: Pixels, other: Pixels) -> Likeness:
    """Compare two pictures uint8 [height, width, 3]."""
    a, b = (torch.from_numpy(each).double().permute(2, 0, 1) for each in (picture, other))
    error = float((a - b).square().mean())
    psnr = float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))
    return Likeness(psnr, _ssim(a, b))


def _ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of [channels, height, width] in 0 to 255 (Wang et al. 2004), mean over channels.

    Means, variances and covariance are those of a Gaussian window, which must lie within the picture.
    """
    offsets = torch.arange(WINDOW, dtype=a.dtype) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window = torch.outer(weights, weights) / weights.sum() ** 2

    def local_mean(x: Tensor) -> Tensor:
        return F.conv2d(x.unsqueeze(1), window[None, None])

    mean_a, mean_b = local_mean(a), local_mean(b)
    variance_a = local_mean(a * a) - mean_a**2
    variance_b = local_mean(b * b) - mean_b**2
    covariance = local_mean(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float((luminance * structure).mean())


def pictures(pipeline: Pipeline, seeds: Iterable[int], side: int) -> list[Pixels]:
    """Make every prompt with every seed, `side` pixels squared."""
    return [
        pipeline.generate(
            [prompt],
            seeds=[seed],
            width=side,
            height=side,
            steps=pipeline.info.default_steps,
            max_sequence_length=pipeline.info.default_sequence_length,
        )[0]
        for prompt in PROMPTS
        for seed in seeds
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two dtypes, or a dtype with itself quantised."""
    parser = argparse.ArgumentParser(prog="python -m model.likeness", description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL, help="checkpoint folder or file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    dtypes = ["auto", "bfloat16", "float16", "float32"]
    parser.add_argument("--dtype", default="auto", choices=dtypes, help="of the pictures that are right")
    parser.add_argument("--other-dtype", choices=dtypes, help="of the others; by default the same")
    parser.add_argument("--quantize", default="none", choices=["none", "fp8"], help="of the others")
    parser.add_argument("--side", type=int, help="pixels; default the model's")
    parser.add_argument("--seeds", type=int, default=4, help="pictures for each of the prompts")
    options = parser.parse_args(arguments)
    precisions: list[tuple[DtypeName, QuantizeName]] = [
        (options.dtype, "none"),
        (options.other_dtype or options.dtype, options.quantize),
    ]
    made = []
    for dtype, quantize in precisions:
        device = choose_device(options.device)
        try:
            pipeline = Pipeline.load(
                options.model,
                device=device,
                dtype=choose_dtype(dtype, device),
                numerics=choose_numerics("auto", device),
                quantize=quantize,
            )
        except (CheckpointError, ValueError) as error:
            parser.error(str(error))
        made.append(pictures(pipeline, range(options.seeds), options.side or pipeline.info.default_width))
    found = [likeness(picture, other) for picture, other in zip(*made, strict=True)]
    print(f"{len(found)} pictures: {summary(found)}")
    return 0


def summary(found: Sequence[Likeness]) -> str:
    """Return means and worst values in one line."""
    psnr, ssim = [each.psnr for each in found], [each.ssim for each in found]
    return (
        f"PSNR {fmean(psnr):.1f} dB (worst {min(psnr):.1f}), SSIM {fmean(ssim):.4f} (worst {min(ssim):.4f})"
    )


if __name__ == "__main__":
    sys.exit(main())
