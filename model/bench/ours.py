"""Our pipeline as a contestant, and the PNG that every contestant ends with."""

import io

from PIL import Image

from model.bench.contest import Mark, Work
from model.conditioning import Prompt
from model.pipeline import Pipeline, Pixels
from model.sizes import weight_bytes


class Ours:
    """Makes the pictures of a piece of work together, one step of all at a time."""

    def __init__(self, pipeline: Pipeline) -> None:
        """Run a pipeline that keeps no prompts."""
        self.pipeline = pipeline
        quantize = pipeline.info.quantize
        self.name = "ours" if quantize == "none" else f"ours {quantize}"

    @property
    def weight_bytes(self) -> int:
        """The weights of all four modules."""
        parts = self.pipeline
        modules = (parts.transformer, parts.autoencoder, parts.clip.model, parts.t5.model)
        return sum(map(weight_bytes, modules))

    def run(self, work: Work, mark: Mark) -> list[Pixels]:
        """Make the pictures as the worker does: encode, start, step by step, decode, write."""
        pipeline = self.pipeline
        conditionings = pipeline.encode([Prompt(text, work.text_length) for text in work.prompts])
        mark("text")
        samples = [
            pipeline.start(
                conditioning=conditioning,
                negative=None,
                width=side,
                height=side,
                steps=work.steps,
                seed=seed,
                guidance_scale=0.0,
            )
            for seed, (side, conditioning) in enumerate(zip(work.sides, conditionings, strict=True))
        ]
        mark("start")
        for _ in range(work.steps):
            pipeline.denoise_step(samples)
            mark("step")
        pictures = pipeline.decode(samples)
        mark("decode")
        for pixels in pictures:
            png(Image.fromarray(pixels))
        mark("png")
        return pictures


def png(image: Image.Image) -> bytes:
    """Write a PNG by Pillow at its fastest, for every contestant: the server's own encoder does not compete.

    That one is seven times as fast (loadtests/results/png.csv), but a bare GPU host has no isal for it.
    """
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
