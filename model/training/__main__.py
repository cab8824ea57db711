"""`python -m model.training`: the embedded checkpoint from nothing. Stopped, it goes on where it was.

With `--start` a checkpoint's text encoders and autoencoder are kept and its transformer is trained on.
"""

import argparse
from pathlib import Path

from model.device import choose_device
from model.training import autoencoder, flow, towers
from model.training.checkpoint import read_checkpoint, write_checkpoint
from model.training.pictures import Pictures
from model.training.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.training", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/training"), help="where runs are kept")
    parser.add_argument("--output", type=Path, default=Path("build/training/checkpoint"))
    parser.add_argument(
        "--flow-steps", type=int, default=Recipe().flow_steps, help="more where time is cheap"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--start", type=Path, help="a checkpoint to go on from, such as model/tiny")
    parser.add_argument(
        "--first-picture", type=int, default=Recipe().first_picture, help="pictures are numbered"
    )
    options = parser.parse_args()
    recipe = Recipe(
        flow_steps=options.flow_steps,
        first_picture=options.first_picture,
        device=choose_device(options.device),
    )
    train(options.work, options.output, recipe, start=options.start)
    print(f"{options.output}: look at it with python -m model.training.evaluate --model {options.output}")


def train(work: Path, output: Path, recipe: Recipe, *, start: Path | None = None) -> None:
    """Train what is not yet trained in `work`, from nothing or from `start`, and write `output`.

    Runs and pictures belong to the encoders they were made with: each `start` has a folder of its own.
    """
    if start is None:
        transformer, tokenizers = None, work
        text = towers.train(work, recipe)
        images = autoencoder.train(work, recipe)
    else:
        tokenizers = start
        transformer, images, text, digest = read_checkpoint(start, recipe.device)
        work = work / f"from-{digest[:12]}"
        work.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(work, images, text, first=recipe.first_picture)
    transformer = flow.train(work, pictures, recipe, transformer)
    write_checkpoint(output, tokenizers, transformer=transformer, autoencoder=images, text=text)


if __name__ == "__main__":
    main()
