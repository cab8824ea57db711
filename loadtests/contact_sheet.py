"""A sheet of pictures from a running server, each over its prompt: the one that opens the README.

`make serve`, then `python -m loadtests.contact_sheet docs/contact-sheet.png`.
"""

import argparse
import io
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from PIL import Image, ImageDraw, ImageFont

PROMPTS = (
    "a red circle on a blue background",
    "a yellow star at the top on a purple background",
    "three pink hearts on a white background",
    "a blue house in a meadow",
    "a red boat on the sea",
    "a small white moon at night",
    "a large orange fish on a cyan background",
    "a black cat face on a pink background",
    "a red triangle above a blue circle on white",
    "a green tree next to a brown house in the desert",
    "four orange stars on a black background",
    "a grey robot at sunset",
    "two purple rings on a yellow background",
    "a pink flower on a gradient from yellow to green",
    "a green diamond to the left of a red cross",
    "a yellow sun over a grey mountain in the sky",
    "a photo of a kitten in a garden",
    "a rocket in the night sky, best quality",
)
COLUMNS = 6
PICTURE, CAPTION, GAP = 192, 40, 8


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtests.contact_sheet", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with ThreadPoolExecutor() as threads:
        pictures = list(threads.map(lambda prompt: generate(options.url, prompt, options.seed), PROMPTS))
    sheet(pictures).save(options.file, optimize=True)


def generate(url: str, prompt: str, seed: int) -> Image.Image:
    response = httpx.post(
        f"{url}/v1/generate",
        json={"prompt": prompt, "seed": seed},
        headers={"Accept": "image/png"},
        timeout=120,
    )
    response.raise_for_status()
    return Image.open(io.BytesIO(response.content)).convert("RGB")


def sheet(pictures: list[Image.Image]) -> Image.Image:
    """Rows of pictures on white, each with its prompt below."""
    rows = -(-len(pictures) // COLUMNS)
    across, down = PICTURE + GAP, PICTURE + CAPTION + GAP
    paper = Image.new("RGB", (COLUMNS * across + GAP, rows * down + GAP), "white")
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(13)
    for index, (picture, prompt) in enumerate(zip(pictures, PROMPTS, strict=True)):
        left, top = GAP + index % COLUMNS * across, GAP + index // COLUMNS * down
        paper.paste(picture.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS), (left, top))
        pen.text((left, top + PICTURE + 4), "\n".join(textwrap.wrap(prompt, 28)), "black", font)
    return paper


if __name__ == "__main__":
    main()
