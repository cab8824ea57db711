"""What the flow learns from: encoded pictures with their prompts, chance and places of interest.

The collection grows while the flow trains, a few new pictures a step. Every picture is a function of its
number alone, so a resumed run finds the same ones; what was encoded is kept in files.
"""

import random
from concurrent.futures import Executor
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.autoencoder import Autoencoder
from model.sampling import pack
from model.training.autoencoder import to_model
from model.training.chance import Chance
from model.training.drawing import PATCH, draw
from model.training.towers import Text, random_text

SHARD = 1000
_SIZES = (
    (256, 256, 60),
    (256, 384, 9),
    (384, 256, 9),
    (384, 384, 8),
    (512, 512, 6),
    (384, 512, 2),
    (512, 384, 2),
    (768, 768, 2),
    (1024, 1024, 1),
)  # height, width, share


@dataclass(frozen=True, slots=True)
class Example:
    """One picture; all tensors are float16 but `pooled` and `states`, which are float32.

    latents [tokens, 64]; whole [5] and grain [tokens, 4]: its chance; interest [tokens]: 1 where an object
    is, else 0; size [2]: rows and columns; pooled [width], states [text tokens + 1, width]: its prompt, the
    last state standing for `padding` [1] equal ones.
    """

    latents: Tensor
    whole: Tensor
    grain: Tensor
    interest: Tensor
    size: Tensor
    pooled: Tensor
    states: Tensor
    padding: Tensor


class Pictures:
    def __init__(self, folder: Path, autoencoder: Autoencoder, text: Text, *, first: int = 0) -> None:
        self.folder, self.autoencoder, self.text, self.first = folder, autoencoder, text, first
        self.examples: list[Example] = []

    def grow(self, count: int, executor: Executor) -> None:
        """Have at least `count` examples, encoded now or in an earlier run."""
        while len(self.examples) < count:
            start = len(self.examples)
            file = self._file(start // SHARD)
            if start % SHARD == 0 and file.exists():
                self.examples += _read(file)
                continue
            stop = min(count, start - start % SHARD + SHARD)
            self.examples += executor.map(self.example, range(self.first + start, self.first + stop))
            if stop % SHARD == 0:
                _write(file, self.examples[-SHARD:])

    def _file(self, shard: int) -> Path:
        return self.folder / f"pictures-{self.first}-{shard:04d}.safetensors"

    @torch.no_grad()
    def example(self, number: int) -> Example:
        """Make the picture of a number."""
        rng = random.Random(1_000_000 + number)
        height, width = rng.choices([s[:2] for s in _SIZES], [s[2] for s in _SIZES])[0]
        rows, columns = height // PATCH, width // PATCH
        chance = Chance.draw(np.random.default_rng(number), rows, columns)
        prompt, scene = random_text(rng)
        picture = draw(scene, chance, height, width)
        empty = draw(replace(scene, things=(), relation=None), chance, height, width)
        changed = torch.from_numpy((picture != empty).any(-1)).view(rows, PATCH, columns, PATCH)
        image = to_model(picture)[None].to(self.autoencoder.decoder.conv_in.weight.device)
        with torch.autocast(image.device.type, torch.bfloat16):
            latents = pack(self.autoencoder.encode(image))[0].cpu()
        pooled, states, padding = self.text.encode(prompt)
        return Example(
            latents=latents.half(),
            whole=torch.from_numpy(chance.whole).half(),
            grain=torch.from_numpy(chance.grain).flatten(0, 1).half(),
            interest=changed.any(3).any(1).flatten().half(),
            size=torch.tensor([rows, columns]),
            pooled=pooled,
            states=states,
            padding=torch.tensor([padding]),
        )


def _write(file: Path, examples: list[Example]) -> None:
    tensors = {f"{i}.{f.name}": getattr(e, f.name) for i, e in enumerate(examples) for f in fields(e)}
    partial = file.with_suffix(".partial")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    partial.rename(file)


def _read(file: Path) -> list[Example]:
    tensors = load_file(file)
    names = [f.name for f in fields(Example)]
    return [Example(**{name: tensors[f"{i}.{name}"] for name in names}) for i in range(SHARD)]
