"""The small world that the embedded model draws: what a scene is, and where its objects stand.

A scene is what a prompt says and nothing else. What it leaves open is decided by the seed when it is drawn
(model/training/drawing.py). The same scene always has the same slots, so the words alone tell the layout.
"""

import hashlib
import random
from dataclasses import dataclass
from enum import StrEnum


class Noun(StrEnum):
    CIRCLE = "circle"
    SQUARE = "square"
    TRIANGLE = "triangle"
    STAR = "star"
    HEART = "heart"
    DIAMOND = "diamond"
    CROSS = "cross"
    RING = "ring"
    MOON = "moon"
    HOUSE = "house"
    TREE = "tree"
    BOAT = "boat"
    FLOWER = "flower"
    FISH = "fish"
    CAT = "cat"
    CLOUD = "cloud"
    SUN = "sun"
    MOUNTAIN = "mountain"
    ROBOT = "robot"


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"
    BLUE = "blue"
    YELLOW = "yellow"
    ORANGE = "orange"
    PURPLE = "purple"
    PINK = "pink"
    BROWN = "brown"
    BLACK = "black"
    WHITE = "white"
    GREY = "grey"
    CYAN = "cyan"


RGB: dict[Colour, tuple[int, int, int]] = {
    Colour.RED: (222, 44, 48),
    Colour.GREEN: (44, 160, 72),
    Colour.BLUE: (40, 92, 224),
    Colour.YELLOW: (252, 214, 48),
    Colour.ORANGE: (246, 136, 28),
    Colour.PURPLE: (128, 64, 188),
    Colour.PINK: (248, 140, 190),
    Colour.BROWN: (128, 80, 44),
    Colour.BLACK: (28, 28, 32),
    Colour.WHITE: (250, 250, 250),
    Colour.GREY: (142, 146, 152),
    Colour.CYAN: (64, 208, 220),
}

NATURAL: dict[Noun, Colour] = {
    Noun.CIRCLE: Colour.RED,
    Noun.SQUARE: Colour.BLUE,
    Noun.TRIANGLE: Colour.GREEN,
    Noun.STAR: Colour.YELLOW,
    Noun.HEART: Colour.RED,
    Noun.DIAMOND: Colour.CYAN,
    Noun.CROSS: Colour.RED,
    Noun.RING: Colour.ORANGE,
    Noun.MOON: Colour.YELLOW,
    Noun.HOUSE: Colour.ORANGE,
    Noun.TREE: Colour.GREEN,
    Noun.BOAT: Colour.RED,
    Noun.FLOWER: Colour.PINK,
    Noun.FISH: Colour.ORANGE,
    Noun.CAT: Colour.GREY,
    Noun.CLOUD: Colour.WHITE,
    Noun.SUN: Colour.YELLOW,
    Noun.MOUNTAIN: Colour.GREY,
    Noun.ROBOT: Colour.GREY,
}
"""The colour of an object whose prompt names none."""


class Size(StrEnum):
    SMALL = "small"
    MEDIUM = "medium"
    LARGE = "large"


class Place(StrEnum):
    CENTRE = "centre"
    LEFT = "left"
    RIGHT = "right"
    TOP = "top"
    BOTTOM = "bottom"


class Relation(StrEnum):
    """Of the first object to the second."""

    ABOVE = "above"
    BELOW = "below"
    LEFT_OF = "left of"
    RIGHT_OF = "right of"
    NEXT_TO = "next to"


class Setting(StrEnum):
    """What kind of background there is; OPEN is one that the prompt does not mention."""

    OPEN = "open"
    PLAIN = "plain"
    GRADIENT = "gradient"
    SKY = "sky"
    SEA = "sea"
    NIGHT = "night"
    SUNSET = "sunset"
    MEADOW = "meadow"
    DESERT = "desert"


SCENIC = (Setting.SKY, Setting.SEA, Setting.NIGHT, Setting.SUNSET, Setting.MEADOW, Setting.DESERT)


@dataclass(frozen=True, slots=True)
class Thing:
    """An object; `colour` None is its natural one."""

    noun: Noun
    colour: Colour | None = None

    @property
    def seen_colour(self) -> Colour:
        return self.colour or NATURAL[self.noun]


@dataclass(frozen=True, slots=True)
class Background:
    """`colours`: one for PLAIN, top and bottom for GRADIENT, none otherwise."""

    setting: Setting = Setting.OPEN
    colours: tuple[Colour, ...] = ()


@dataclass(frozen=True, slots=True)
class Scene:
    """Nothing, `count` times one thing, or two things in a relation.

    `size` and `place` apply to one thing that is there once.
    """

    background: Background
    things: tuple[Thing, ...] = ()
    count: int = 1
    size: Size = Size.MEDIUM
    place: Place = Place.CENTRE
    relation: Relation | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a thing stands: centre as fractions of width and height, radius as one of the shorter side."""

    thing: Thing
    x: float
    y: float
    radius: float


_RADIUS = {Size.SMALL: 0.15, Size.MEDIUM: 0.24, Size.LARGE: 0.34}
_PLACED_RADIUS = {Size.SMALL: 0.12, Size.MEDIUM: 0.17, Size.LARGE: 0.22}
_PLACES = {
    Place.CENTRE: (0.5, 0.5),
    Place.LEFT: (0.25, 0.5),
    Place.RIGHT: (0.75, 0.5),
    Place.TOP: (0.5, 0.25),
    Place.BOTTOM: (0.5, 0.75),
}
_ROWS: dict[int, tuple[tuple[float, float, float], ...]] = {
    2: ((0.28, 0.5, 0.17), (0.72, 0.5, 0.17)),
    3: ((0.5, 0.28, 0.16), (0.27, 0.7, 0.16), (0.73, 0.7, 0.16)),
    4: ((0.28, 0.28, 0.16), (0.72, 0.28, 0.16), (0.28, 0.72, 0.16), (0.72, 0.72, 0.16)),
}
_UPRIGHT = ((0.5, 0.27, 0.18), (0.5, 0.73, 0.18))
_LEVEL = ((0.28, 0.5, 0.18), (0.72, 0.5, 0.18))


def slots(scene: Scene) -> tuple[Slot, ...]:
    """Lay the things of `scene` out, before the seed moves them a little."""
    if scene.relation is not None:
        first, second = scene.things
        if scene.relation in (Relation.BELOW, Relation.RIGHT_OF):
            first, second = second, first
        upright = scene.relation in (Relation.ABOVE, Relation.BELOW)
        pair = zip((first, second), _UPRIGHT if upright else _LEVEL, strict=True)
        return tuple(Slot(thing, *where) for thing, where in pair)
    if not scene.things:
        return ()
    (thing,) = scene.things
    if scene.count > 1:
        return tuple(Slot(thing, *where) for where in _ROWS[scene.count])
    radius = _RADIUS if scene.place is Place.CENTRE else _PLACED_RADIUS
    return (Slot(thing, *_PLACES[scene.place], radius[scene.size]),)


def random_scene(rng: random.Random) -> Scene:
    """Draw a scene in which every object stands out from its background."""
    background = random_background(rng)
    kind = rng.choices(("nothing", "one", "several", "pair"), (4, 48, 22, 26))[0]
    if kind == "nothing" and background.setting in SCENIC:
        return Scene(background)
    if kind == "pair":
        first, second = (random_thing(rng, background) for _ in range(2))
        while second.noun is first.noun and second.seen_colour is first.seen_colour:
            second = random_thing(rng, background)
        return Scene(background, (first, second), relation=rng.choice(list(Relation)))
    thing = random_thing(rng, background)
    if kind == "several":
        return Scene(background, (thing,), count=rng.randint(2, 4))
    place = rng.choice(list(Place)) if rng.random() < 0.55 else Place.CENTRE
    size = rng.choice((Size.SMALL, Size.LARGE)) if rng.random() < 0.45 else Size.MEDIUM
    return Scene(background, (thing,), size=size, place=place)


def random_background(rng: random.Random) -> Background:
    setting = rng.choices(
        (Setting.OPEN, Setting.PLAIN, Setting.GRADIENT, *SCENIC), (10, 45, 9, 6, 6, 6, 6, 6, 6)
    )[0]
    if setting is Setting.PLAIN:
        return Background(setting, (rng.choice(list(Colour)),))
    if setting is Setting.GRADIENT:
        return Background(setting, tuple(rng.sample(list(Colour), 2)))
    return Background(setting)


_HIDDEN_BY: dict[Setting, tuple[Colour, ...]] = {
    Setting.OPEN: (Colour.WHITE,),
    Setting.SKY: (Colour.CYAN, Colour.WHITE),
    Setting.SEA: (Colour.CYAN, Colour.BLUE),
    Setting.NIGHT: (Colour.BLACK, Colour.BLUE),
    Setting.SUNSET: (Colour.ORANGE, Colour.PURPLE, Colour.BLACK),
    Setting.MEADOW: (Colour.GREEN, Colour.CYAN),
    Setting.DESERT: (Colour.YELLOW, Colour.BROWN, Colour.ORANGE),
}
_ALIKE = (
    {Colour.WHITE, Colour.GREY},
    {Colour.BLACK, Colour.BROWN},
    {Colour.ORANGE, Colour.YELLOW},
    {Colour.RED, Colour.ORANGE},
    {Colour.BLUE, Colour.PURPLE},
    {Colour.CYAN, Colour.BLUE},
)


def random_thing(rng: random.Random, background: Background) -> Thing:
    """Draw an object whose colour the background does not swallow; one in six has its natural colour."""
    while True:
        noun = rng.choice(list(Noun))
        thing = Thing(noun, rng.choice(list(Colour)) if rng.random() < 5 / 6 else None)
        if not swallowed(thing.seen_colour, background):
            return thing


def swallowed(colour: Colour, background: Background) -> bool:
    """Tell whether an object of `colour` would hardly be seen."""
    if colour in background.colours or colour in _HIDDEN_BY.get(background.setting, ()):
        return True
    return any(colour in pair and other in pair for pair in _ALIKE for other in background.colours)


def is_held_out(scene: Scene) -> bool:
    """Tell whether `scene` is kept from training: a tenth of all (objects, background), by their digest."""
    key = repr((scene.things, scene.background))
    return hashlib.sha256(key.encode()).digest()[0] < 26
