"""Reading a picture: which objects stand where, in what shape and colour, on what background.

Works on the picture alone. Objects are what differs from a plain or graded background; shapes are told by
overlap with the drawings of every noun, colours by the nearest of the twelve in the object's main part.
"""

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from model.training.chance import Chance
from model.training.drawing import DRAWINGS, PALE, Picture, Rgb, draw
from model.training.world import RGB, SCENIC, Background, Colour, Noun, Place, Relation, Scene, Setting, Thing

Mask = NDArray[np.bool_]
_GRID = 48  # side of the masks that shapes are compared in
_FOREGROUND = 26.0  # distance in RGB from the background
_JOIN = 2  # in 128ths of the shorter side: parts of one object that are this near are one


@dataclass(frozen=True, slots=True)
class Blob:
    """One object in a picture: its pixels and its box, in pixels."""

    mask: Mask
    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        return int(self.mask.sum())

    @property
    def centre(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


def background_of(picture: Picture) -> NDArray[np.float32]:
    """The background's colour in every row, [height, 3].

    Plain and graded ones change evenly from top to bottom, and no object is half as wide as the picture
    where it touches the upper or lower border: two medians tell it all.
    """
    few = max(2, picture.shape[0] // 64)
    top, bottom = (np.median(band.reshape(-1, 3), axis=0) for band in (picture[:few], picture[-few:]))
    down = np.linspace(0, 1, picture.shape[0], dtype=np.float32)[:, None]
    rows: NDArray[np.float32] = (top + (bottom - top) * down).astype(np.float32)
    return rows


def blobs(picture: Picture) -> list[Blob]:
    """The objects on a background that only changes from top to bottom, the largest first."""
    away = np.linalg.norm(picture.astype(np.float32) - background_of(picture)[:, None], axis=2)
    mask = torch.from_numpy(away > _FOREGROUND)
    coarse = max(1, min(mask.shape) // 128)  # labels are found on few pixels
    near = F.max_pool2d(mask[None, None].float(), coarse)
    near = F.max_pool2d(near, 2 * _JOIN - 1, 1, _JOIN - 1)[0, 0] > 0
    labels = F.interpolate(_labels(near)[None, None], size=mask.shape)[0, 0] * mask
    found = [_blob((labels == label).numpy()) for label in torch.unique(labels).tolist() if label]
    return sorted(found, key=lambda blob: -blob.area)


def objects(picture: Picture) -> list[Blob]:
    """The blobs that are no specks: at least a third as large as the largest."""
    found = blobs(picture)
    least = max(picture.shape[0] * picture.shape[1] * 0.002, found[0].area / 3) if found else 0
    return [blob for blob in found if blob.area >= least]


def _labels(mask: Tensor) -> Tensor:
    """A number for every connected region, 0 outside: the largest index spreads until nothing changes."""
    labels = (torch.arange(1, mask.numel() + 1, dtype=torch.float64).view_as(mask) * mask)[None, None]
    while True:
        spread = labels
        for _ in range(8):
            spread = F.max_pool2d(spread, 3, 1, 1) * mask
        if torch.equal(spread, labels):
            return labels[0, 0]
        labels = spread


def _blob(mask: Mask) -> Blob:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Blob(mask, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


# --- shape


def noun_of(blob: Blob) -> Noun:
    """The noun whose drawing overlaps best, at any place and size, turned at most 12 degrees."""
    seen = _normal(blob.mask[blob.top : blob.bottom, blob.left : blob.right])
    scores = {
        noun: max(_overlap(seen, drawn) for drawn in templates) for noun, templates in _templates().items()
    }
    return max(scores, key=lambda noun: scores[noun])


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.minimum(a, b).sum() / np.maximum(a, b).sum())


def _normal(mask: Mask) -> NDArray[np.float32]:
    """A cut-out mask scaled into the grid, its longer side filling it."""
    height, width = mask.shape
    scale = _GRID / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BOX)
    out = Image.new("L", (_GRID, _GRID))
    out.paste(small, ((_GRID - size[0]) // 2, (_GRID - size[1]) // 2))
    return np.asarray(out, dtype=np.float32) / np.float32(255)


@cache
def _templates() -> dict[Noun, list[NDArray[np.float32]]]:
    """The drawings as masks, whole and, for pale backgrounds, without what is pale."""
    templates: dict[Noun, list[NDArray[np.float32]]] = {}
    for noun, parts in DRAWINGS.items():
        tones = {tone for _, tone in parts}
        wholes = (tones, tones - {PALE}) if PALE in tones else (tones,)
        templates[noun] = [
            _normal(_silhouette(noun, math.radians(angle), wanted))
            for angle in (-12, -6, 0, 6, 12)
            for wanted in wholes
        ]
    return templates


def _silhouette(noun: Noun, angle: float, wanted: Container[str | Rgb]) -> Mask:
    """What shows of the parts of `wanted` tones in the end, cut to its box."""
    side, radius = 256, 100
    shown = Image.new("1", (side, side))
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    for points, tone in DRAWINGS[noun]:
        placed = [(128 + x * c - y * s, 128 + x * s + y * c) for x, y in points]
        ImageDraw.Draw(shown).polygon(placed, fill=int(tone in wanted))
    return np.asarray(shown.crop(shown.getbbox()))


# --- colour


def colour_of(picture: Picture, blob: Blob, noun: Noun) -> Colour:
    """The colour of the main part of a blob that is taken for `noun`."""
    size = (blob.right - blob.left, blob.bottom - blob.top)
    main = np.asarray(_main_part(noun).resize(size, Image.Resampling.NEAREST))
    box = (slice(blob.top, blob.bottom), slice(blob.left, blob.right))
    inside = main & blob.mask[box]
    pixels = picture[box][inside if inside.any() else blob.mask[box]]
    return nearest_colour(np.median(pixels.astype(np.float32), axis=0))


@cache
def _main_part(noun: Noun) -> Image.Image:
    """Where the main tone shows, within the box of the whole drawing."""
    side, radius = 256, 100
    whole, main = Image.new("1", (side, side)), Image.new("1", (side, side))
    for points, tone in DRAWINGS[noun]:
        placed = [(128 + radius * x, 128 + radius * y) for x, y in points]
        ImageDraw.Draw(whole).polygon(placed, fill=1)
        ImageDraw.Draw(main).polygon(placed, fill=int(tone == "main"))
    return main.crop(whole.getbbox())


def nearest_colour(rgb: NDArray[np.float32]) -> Colour:
    return min(RGB, key=lambda colour: float(np.linalg.norm(rgb - np.array(RGB[colour], dtype=np.float32))))


def background_colours(picture: Picture) -> tuple[Colour, Colour]:
    """The nearest colours of the top and of the bottom."""
    rows = background_of(picture)
    return nearest_colour(rows[0]), nearest_colour(rows[-1])


# --- scenes


def setting_of(picture: Picture, chance: Chance) -> Setting:
    """The scenery that is nearest where no object usually stands: in the two bands at the borders."""
    height, width, _ = picture.shape
    edge = width // 8
    distances = {}
    for setting in SCENIC:
        drawn = draw(Scene(Background(setting)), chance, height, width).astype(np.float32)
        away = np.abs(picture.astype(np.float32) - drawn).mean(2)
        distances[setting] = float(np.concatenate([away[:, :edge], away[:, -edge:]], axis=1).mean())
    return min(distances, key=lambda setting: distances[setting])


# --- arrangement


def place_of(blob: Blob, height: int, width: int) -> Place:
    x, y = blob.centre
    right, down = x / width - 0.5, y / height - 0.5
    if max(abs(right), abs(down)) < 0.125:
        return Place.CENTRE
    if abs(right) > abs(down):
        return Place.RIGHT if right > 0 else Place.LEFT
    return Place.BOTTOM if down > 0 else Place.TOP


def holds(relation: Relation, first: Blob, second: Blob) -> bool:
    """Whether the first object stands in `relation` to the second."""
    right, down = (b - a for a, b in zip(first.centre, second.centre, strict=True))
    level = abs(right) > abs(down)
    return {
        Relation.ABOVE: not level and down > 0,
        Relation.BELOW: not level and down < 0,
        Relation.LEFT_OF: level and right > 0,
        Relation.RIGHT_OF: level and right < 0,
        Relation.NEXT_TO: level,
    }[relation]


def match(found: Sequence[Blob], things: Sequence[Thing], picture: Picture) -> list[Blob] | None:
    """Which of two blobs is which of two things: the assignment in which more is right; None without two."""
    if len(found) != 2:
        return None
    straight, crossed = list(found), list(reversed(found))
    return max((straight, crossed), key=lambda pair: _agreement(pair, things, picture))


def _agreement(pair: Sequence[Blob], things: Sequence[Thing], picture: Picture) -> float:
    return sum(
        (noun_of(blob) is thing.noun) + 0.9 * (colour_of(picture, blob, thing.noun) is thing.seen_colour)
        for blob, thing in zip(pair, things, strict=True)
    )
