"""Make one picture without a server: `python -m model.generate "a prompt" -o out.png`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from model.checkpoint import CheckpointError
from model.device import choose_device, choose_dtype, choose_memory, choose_numerics
from model.lending import Memory
from model.pipeline import Pipeline
from model.progress import loading_bar
from model.sampling import check_size
from model.source import Source

DEFAULT_STRENGTH = 0.6  # as in diffusers
EMBEDDED_MODEL = Path(__file__).resolve().parent / "tiny"


def main(arguments: Sequence[str] | None = None) -> int:
    """Load, generate, save; a wrong argument or checkpoint is one line on stderr and status 2 or 3."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.output.suffix.lower() not in Image.registered_extensions():
        parser.error(f"-o {options.output}: no picture format has this ending")
    if not options.output.absolute().parent.is_dir():
        parser.error(f"-o {options.output}: there is no such folder")
    try:
        pipeline = _load(options)
    except CheckpointError as error:
        print(f"the model cannot be loaded: {error}", file=sys.stderr)
        return 3
    except (ValueError, RuntimeError) as error:  # RuntimeError: torch's word for a device that is none
        parser.error(str(error).splitlines()[0])
    width = options.width or pipeline.info.default_width
    height = options.height or pipeline.info.default_height
    try:
        check_size(width=width, height=height)
        source = _source(options, size=(width, height))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    (pixels,) = pipeline.generate(
        [options.prompt],
        seeds=[options.seed],
        width=width,
        height=height,
        steps=options.steps or pipeline.info.default_steps,
        max_sequence_length=options.max_sequence_length or pipeline.info.default_sequence_length,
        negative_prompt=options.negative_prompt,
        guidance_scale=options.guidance_scale,
        source=source,
    )
    Image.fromarray(pixels).save(options.output)
    print(f"{options.output}: {width}x{height}, seed {options.seed}, {pipeline.info.name}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m model.generate", description=__doc__)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=Path, default=Path("out.png"), help="file to write")
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL, help="checkpoint folder or file")
    parser.add_argument("--width", type=int, help="pixels, a multiple of 16")
    parser.add_argument("--height", type=int, help="likewise; both default to the model's size")
    parser.add_argument("--steps", type=_positive, help="default: 4 for schnell, 28 for dev weights")
    parser.add_argument("--seed", type=_seed, default=0, help="from 0 to 2^64 - 1")
    parser.add_argument("--max-sequence-length", type=_positive, help="T5 tokens; default 256, dev 512")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--guidance-scale", type=float, default=0.0, help="above 1: classifier-free guidance")
    parser.add_argument("--image", type=Path, help="picture to start from, scaled to the size of the new one")
    parser.add_argument("--strength", type=_strength, help="how much of it is drawn anew; default 0.6")
    parser.add_argument("--mask", type=Path, help="picture that is white where --image is drawn anew")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float16", "float32"])
    parser.add_argument("--quantize", default="none", choices=["none", "fp8"])
    parser.add_argument("--numerics", default="auto", choices=["auto", "exact", "fast"])
    parser.add_argument("--memory", default="full", choices=list(Memory), help="as the server's --memory")
    parser.add_argument("--allow-pickle", action="store_true", help="load pickle files, weights only")
    return parser


def _load(options: argparse.Namespace) -> Pipeline:
    device = choose_device(options.device)
    with loading_bar() as progress:
        return Pipeline.load(
            options.model,
            device=device,
            dtype=choose_dtype(options.dtype, device),
            numerics=choose_numerics(options.numerics, device),
            quantize=options.quantize,
            memory=choose_memory(options.memory, device),
            allow_pickle=options.allow_pickle,
            progress=progress,
        )


def _source(options: argparse.Namespace, *, size: tuple[int, int]) -> Source | None:
    """Read the picture to start from; raises `ValueError`, or `OSError` for a file that is no picture."""
    if options.image is None:
        if options.mask is not None or options.strength is not None:
            raise ValueError("--mask and --strength need an --image")
        return None
    return Source(
        pixels=np.asarray(_read(options.image).convert("RGB").resize(size, Image.Resampling.LANCZOS)),
        strength=DEFAULT_STRENGTH if options.strength is None else options.strength,
        mask=None
        if options.mask is None
        else np.asarray(_read(options.mask).resize(size, Image.Resampling.LANCZOS).convert("L")),
    )


def _read(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return ImageOps.exif_transpose(opened)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def _strength(text: str) -> float:
    strength = float(text)
    if not 0 < strength <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return strength


def _seed(text: str) -> int:
    seed = int(text)
    if not 0 <= seed < 2**64:
        raise argparse.ArgumentTypeError(f"{seed} is not from 0 to 2^64 - 1")
    return seed


if __name__ == "__main__":
    sys.exit(main())
