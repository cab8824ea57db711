"""How well a checkpoint draws what prompts say, on scenes and seeds that no training has seen.

`python -m model.training.evaluate` prints a table with 95 % intervals. A scene on a plain or graded
background tells of colour, shape, place, count and relation; one with scenery tells of the scenery.
"""

import argparse
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from model.device import choose_dtype
from model.generate import EMBEDDED_MODEL
from model.layout import Numerics
from model.pipeline import Pipeline
from model.sampling import draw_noise
from model.training import judge
from model.training.chance import Chance
from model.training.drawing import PATCH, Picture, draw
from model.training.grammar import random_prompt
from model.training.world import SCENIC, Scene, Setting, is_held_out, random_scene

MEASURES = ("object colour", "background", "shape", "place", "count", "relation", "scenery")
_FIRST_SEED = 1_000_000


@dataclass(frozen=True, slots=True)
class Setup:
    """How pictures are made: sides in pixels, steps, and classifier-free guidance if above 1."""

    width: int
    height: int
    steps: int
    guidance: float = 1.0


DEFAULT_SETUPS = (
    Setup(256, 256, 4),
    Setup(256, 256, 2),
    Setup(256, 256, 1),
    Setup(256, 256, 4, guidance=1.5),
    Setup(384, 256, 4),
    Setup(256, 384, 4),
    Setup(384, 384, 4),
    Setup(512, 512, 4),
)


@dataclass(frozen=True, slots=True)
class Score:
    """`right` of `tried`."""

    right: int
    tried: int

    @property
    def share(self) -> float:
        return self.right / self.tried if self.tried else math.nan

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        if not self.tried:
            return math.nan, math.nan
        z, n, p = 1.96, self.tried, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return max(0.0, centre - half), min(1.0, centre + half)


def held_out_scenes(count: int) -> list[tuple[Scene, str]]:
    """Scenes that were kept from training, with a wording each; always the same ones."""
    rng = random.Random("held out")
    found: list[tuple[Scene, str]] = []
    while len(found) < count:
        scene = random_scene(rng)
        if is_held_out(scene):
            found.append((scene, random_prompt(scene, rng)))
    return found


def evaluate(pipeline: Pipeline, setup: Setup, scenes: Sequence[tuple[Scene, str]]) -> dict[str, Score]:
    """Draw every scene once, with a seed of its own, and count what is right."""
    return _score(setup, scenes, lambda _, prompt, seed, __: draw_prompt(pipeline, setup, prompt, seed))


def evaluate_drawings(setup: Setup, scenes: Sequence[tuple[Scene, str]]) -> dict[str, Score]:
    """Count what the judge finds right in the drawings that the model is to learn: none can score more."""
    return _score(setup, scenes, lambda scene, _, __, chance: draw(scene, chance, setup.height, setup.width))


def _score(
    setup: Setup,
    scenes: Sequence[tuple[Scene, str]],
    paint: Callable[[Scene, str, int, Chance], Picture],
) -> dict[str, Score]:
    right: Counter[str] = Counter()
    tried: Counter[str] = Counter()
    for number, (scene, prompt) in enumerate(tqdm(scenes, str(setup), mininterval=5)):
        seed = _FIRST_SEED + number
        noise = draw_noise(seed=seed, width=setup.width, height=setup.height)
        chance = Chance.of_noise(noise, setup.height // PATCH, setup.width // PATCH)
        for measure, is_right in findings(scene, paint(scene, prompt, seed, chance), chance):
            tried[measure] += 1
            right[measure] += is_right
    return {measure: Score(right[measure], tried[measure]) for measure in MEASURES}


def draw_prompt(pipeline: Pipeline, setup: Setup, prompt: str, seed: int) -> Picture:
    (picture,) = pipeline.generate(
        [prompt],
        seeds=[seed],
        width=setup.width,
        height=setup.height,
        steps=setup.steps,
        max_sequence_length=pipeline.info.default_sequence_length,
        guidance_scale=setup.guidance,
    )
    return picture


def findings(scene: Scene, picture: Picture, chance: Chance) -> Iterator[tuple[str, bool]]:
    """Yield everything that can be told of `picture`: the measure, and whether it is as `scene` has it."""
    background = scene.background
    if background.setting in SCENIC:
        yield "scenery", judge.setting_of(picture, chance) is background.setting
        return
    top, bottom = judge.background_colours(picture)
    if background.setting is Setting.PLAIN:
        yield "background", top is bottom is background.colours[0]
    elif background.setting is Setting.GRADIENT:
        yield "background", (top, bottom) == background.colours
    found = judge.objects(picture)
    if scene.relation is not None:
        pair = judge.match(found, scene.things, picture)
        yield "relation", pair is not None and judge.holds(scene.relation, *pair)
        for i, thing in enumerate(scene.things):
            yield "shape", pair is not None and judge.noun_of(pair[i]) is thing.noun
            yield (
                "object colour",
                pair is not None and judge.colour_of(picture, pair[i], thing.noun) is thing.seen_colour,
            )
        return
    for thing in scene.things:
        yield "count", len(found) == scene.count
        yield "shape", bool(found) and judge.noun_of(found[0]) is thing.noun
        yield (
            "object colour",
            bool(found) and judge.colour_of(picture, found[0], thing.noun) is thing.seen_colour,
        )
        if scene.count == 1:
            yield "place", bool(found) and judge.place_of(found[0], *picture.shape[:2]) is scene.place


def table(rows: Sequence[tuple[Setup, dict[str, Score]]]) -> str:
    """A Markdown table: a row for each setup, percentages with their intervals."""
    lines = [
        "| picture | steps | guidance | " + " | ".join(MEASURES) + " |",
        "|---" * (3 + len(MEASURES)) + "|",
    ]
    for setup, scores in rows:
        cells = [f"{setup.width}x{setup.height}", str(setup.steps), f"{setup.guidance:g}"]
        for measure in MEASURES:
            low, high = scores[measure].interval()
            cells.append(f"{100 * scores[measure].share:.1f} ({100 * low:.0f}-{100 * high:.0f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m model.training.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=EMBEDDED_MODEL)
    parser.add_argument("--scenes", type=int, default=600, help="pictures for each row of the table")
    parser.add_argument("--only-first", action="store_true", help="only the first row: 256x256, 4 steps")
    parser.add_argument("--drawings", action="store_true", help="judge the drawings, not a model")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--quantize", default="none", choices=["none", "fp8"])
    options = parser.parse_args()
    scenes = held_out_scenes(options.scenes)
    setups = DEFAULT_SETUPS[:1] if options.only_first else DEFAULT_SETUPS
    if options.drawings:
        print(table([(setups[0], evaluate_drawings(setups[0], scenes))]))
        return
    device = torch.device("cpu")
    pipeline = Pipeline.load(
        options.model,
        device=device,
        dtype=choose_dtype(options.dtype, device),
        numerics=Numerics.FAST,
        quantize=options.quantize,
    )
    print(table([(setup, evaluate(pipeline, setup, scenes)) for setup in setups]))


if __name__ == "__main__":
    main()
