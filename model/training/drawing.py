"""Scenes to pictures: flat, anti-aliased drawings, and the few things that the seed decides in them.

Everything the seed decides is a function of the noise that the flow starts from, so that noise and picture
form a pair and one step can be sharp. `Chance` is that part of the noise: see model/training/chance.py.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from model.training.chance import Chance
from model.training.world import RGB, Colour, Noun, Scene, Setting, Slot, slots

Rgb = tuple[int, int, int]
Points = list[tuple[float, float]]
Picture = NDArray[np.uint8]
"""uint8 [height, width, 3]."""
PATCH = 16  # pixels of one token
_SHIFT, _GROWTH, _TURN = 0.012, 0.04, 4.0  # fractions of a side and of a radius, degrees: at most

_DARK_EYE: Rgb = (34, 34, 40)
PALE: Rgb = (252, 246, 228)
_TRUNK: Rgb = (112, 72, 44)
_WINDOW: Rgb = (255, 232, 150)


@dataclass(frozen=True, slots=True)
class Paint:
    """The tones of one object: its colour, a darker and a lighter one."""

    main: Rgb
    dark: Rgb
    light: Rgb

    @classmethod
    def of(cls, colour: Colour) -> "Paint":
        main = RGB[colour]
        if colour is Colour.BLACK:
            return cls(main, (82, 82, 90), (120, 120, 128))
        return cls(main, _mix(main, (0, 0, 0), 0.34), _mix(main, (255, 255, 255), 0.5))


def draw(scene: Scene, chance: Chance, height: int, width: int) -> Picture:
    """Draw `scene` as [height, width, 3]; the sides are multiples of 16 pixels."""
    factor = 4 if max(height, width) <= 512 else 2
    canvas = Canvas(height, width, factor)
    _draw_background(scene, chance, canvas)
    turn = math.radians(_TURN * chance.turn)
    for index, slot in enumerate(slots(scene)):
        radius = slot.radius * (1 + _GROWTH * chance.growth) * min(height, width)
        x, y = (slot.x + _SHIFT * chance.right) * width, (slot.y + _SHIFT * chance.down) * height
        angle = turn * (-1) ** index * (1 if slot.thing.noun in _GEOMETRIC else 0.3)
        _draw_thing(canvas, slot, x, y, radius, angle)
    return canvas.picture()


class Canvas:
    """A supersampled RGB canvas; all coordinates are in pixels of the final picture."""

    def __init__(self, height: int, width: int, factor: int) -> None:
        self.height, self.width, self.factor = height, width, factor
        self.image = Image.new("RGB", (width * factor, height * factor))
        self._pen = ImageDraw.Draw(self.image)

    def polygon(self, points: Iterable[tuple[float, float]], rgb: Rgb) -> None:
        # Pillow's pixel centres are at whole numbers.
        self._pen.polygon([(x * self.factor - 0.5, y * self.factor - 0.5) for x, y in points], fill=rgb)

    def gradient(self, top: float, bottom: float, stops: list[Rgb]) -> None:
        """Fill the band from `top` to `bottom` with vertically blended colours, evenly spaced."""
        first, last = round(top * self.factor), round(bottom * self.factor)
        at = np.linspace(0, len(stops) - 1, last - first)
        channels = [np.interp(at, range(len(stops)), [stop[c] for stop in stops]) for c in range(3)]
        column = np.stack(channels, axis=1).round().astype(np.uint8)[:, None]
        band = Image.fromarray(np.ascontiguousarray(column)).resize((self.image.width, last - first), 0)
        self.image.paste(band, (0, first))

    def picture(self) -> Picture:
        return np.asarray(self.image.reduce(self.factor))


# --- backgrounds


def _draw_background(scene: Scene, chance: Chance, canvas: Canvas) -> None:
    colours = [RGB[colour] for colour in scene.background.colours]
    match scene.background.setting:
        case Setting.PLAIN:
            canvas.gradient(0, canvas.height, _shaded(colours[0], chance))
        case Setting.OPEN:
            canvas.gradient(0, canvas.height, _shaded(_pastel(chance), chance))
        case Setting.GRADIENT:
            canvas.gradient(0, canvas.height, colours)
        case setting:
            _SCENERY[setting](canvas, chance)


def _shaded(rgb: Rgb, chance: Chance) -> list[Rgb]:
    """A hint of light from above or below."""
    light, dark = _mix(rgb, (255, 255, 255), 0.06), _mix(rgb, (0, 0, 0), 0.06)
    weight = 0.5 + 0.5 * chance.light
    return [_mix(light, dark, weight), _mix(dark, light, weight)]


def _pastel(chance: Chance) -> Rgb:
    cream, sky, rose = (246, 230, 200), (204, 226, 242), (242, 212, 226)
    return _mix(cream, sky if chance.light > 0 else rose, abs(chance.light))


def _draw_sky(canvas: Canvas, chance: Chance) -> None:
    h, w = canvas.height, canvas.width
    canvas.gradient(0, h, [(84, 160, 236), (196, 228, 250)])
    for x, y, radius in ((0.16, 0.14, 0.13), (0.84, 0.24, 0.11), (0.14, 0.86, 0.1), (0.8, 0.88, 0.14)):
        center = ((x + _SHIFT * chance.right) * w, y * h)
        for points in _CLOUD:
            canvas.polygon(_placed(points, *center, radius * min(h, w), 0), (250, 252, 255))


def _draw_sea(canvas: Canvas, chance: Chance) -> None:
    horizon = _horizon(canvas, chance)
    canvas.gradient(0, horizon, [(150, 208, 246), (228, 242, 250)])
    canvas.gradient(horizon, canvas.height, [(30, 122, 190), (14, 66, 130)])
    for x, y, grain in _grains(canvas, chance, below=horizon + 6):
        if grain[0] > 0.6:
            half = 4 + 1.5 * abs(grain[3])
            canvas.polygon(_ellipse(x, y, half, 1.2), (120, 190, 230))


def _draw_night(canvas: Canvas, chance: Chance) -> None:
    canvas.gradient(0, canvas.height, [(12, 16, 50), (40, 48, 104)])
    for x, y, grain in _grains(canvas, chance):
        if grain[0] > 0.75:
            radius = 1.3 + 0.9 * abs(grain[3])
            canvas.polygon(_ellipse(x, y, radius, radius), (255, 250, 220))


def _draw_sunset(canvas: Canvas, chance: Chance) -> None:
    h, w, horizon = canvas.height, canvas.width, _horizon(canvas, chance)
    canvas.gradient(0, horizon, [(92, 60, 140), (226, 92, 104), (252, 176, 84)])
    radius = 0.17 * min(h, w)
    x = (0.5 + _SHIFT * chance.right) * w
    canvas.polygon(_ellipse(x, horizon, radius, radius), (255, 226, 130))
    canvas.gradient(horizon, h, [(92, 56, 110), (44, 30, 70)])


def _draw_meadow(canvas: Canvas, chance: Chance) -> None:
    h, w, horizon = canvas.height, canvas.width, _horizon(canvas, chance)
    canvas.gradient(0, h, [(120, 196, 248), (214, 238, 250)])
    _draw_hill(canvas, horizon, 0.03 * h, (112, 190, 84))
    canvas.polygon([(0, h), (0, 0.86 * h), (0.5 * w, 0.84 * h), (w, 0.86 * h), (w, h)], (92, 172, 72))
    petals: tuple[Rgb, ...] = ((255, 255, 255), (255, 214, 70), (246, 120, 160))
    for x, y, grain in _grains(canvas, chance, below=horizon + 0.03 * h + 8):
        if grain[0] > 0.7:
            kind = 0 if grain[3] < -0.4 else 1 if grain[3] < 0.4 else 2
            canvas.polygon(_ellipse(x, y, 2.6, 2.6), petals[kind])


def _draw_desert(canvas: Canvas, chance: Chance) -> None:
    h, horizon = canvas.height, _horizon(canvas, chance)
    canvas.gradient(0, h, [(136, 198, 236), (252, 234, 200)])
    _draw_hill(canvas, horizon, -0.03 * h, (238, 198, 126))
    _draw_hill(canvas, horizon + 0.14 * h, 0.03 * h, (226, 178, 104))
    for x, y, grain in _grains(canvas, chance, below=horizon + 0.04 * h + 8):
        if grain[0] > 1.2:
            canvas.polygon(_ellipse(x, y, 2.4, 1.6), (188, 138, 78))


def _horizon(canvas: Canvas, chance: Chance) -> float:
    return float((0.64 + _SHIFT * chance.down) * canvas.height)


def _draw_hill(canvas: Canvas, y: float, swing: float, rgb: Rgb) -> None:
    """Everything below a wave that falls on one side and rises on the other."""
    w, h = canvas.width, canvas.height
    xs = [w * i / 48 for i in range(49)]
    edge = [(x, y + swing * math.sin(2 * math.pi * x / w)) for x in xs]
    canvas.polygon([(0, h), *edge, (w, h)], rgb)


def _grains(
    canvas: Canvas, chance: Chance, *, below: float = 0
) -> Iterable[tuple[float, float, NDArray[np.float32]]]:
    """Yield one place inside every token's patch, and the token's own four numbers."""
    rows, columns, _ = chance.grain.shape
    for row in range(rows):
        for column in range(columns):
            grain = chance.grain[row, column]
            y = (row + 0.5) * PATCH + 4 * math.tanh(grain[1])
            if y > below and (row or column):
                yield (column + 0.5) * PATCH + 4 * math.tanh(grain[2]), y, grain


_SCENERY: dict[Setting, Callable[[Canvas, Chance], None]] = {
    Setting.SKY: _draw_sky,
    Setting.SEA: _draw_sea,
    Setting.NIGHT: _draw_night,
    Setting.SUNSET: _draw_sunset,
    Setting.MEADOW: _draw_meadow,
    Setting.DESERT: _draw_desert,
}


# --- objects: polygons in [-1, 1], y down, painted in order


def _draw_thing(canvas: Canvas, slot: Slot, x: float, y: float, radius: float, angle: float) -> None:
    paint = Paint.of(slot.thing.seen_colour)
    for points, tone in DRAWINGS[slot.thing.noun]:
        rgb = getattr(paint, tone) if isinstance(tone, str) else tone
        canvas.polygon(_placed(points, x, y, radius, angle), rgb)


def _placed(points: Points, x: float, y: float, radius: float, angle: float) -> Points:
    c, s = radius * math.cos(angle), radius * math.sin(angle)
    return [(x + px * c - py * s, y + px * s + py * c) for px, py in points]


def _mix(a: Rgb, b: Rgb, weight: float) -> Rgb:
    red, green, blue = (round(p + (q - p) * weight) for p, q in zip(a, b, strict=True))
    return red, green, blue


def _ellipse(
    x: float, y: float, rx: float, ry: float, start: float = 0, stop: float = 360, n: int = 48
) -> Points:
    """Points from `start` to `stop` degrees, clockwise from the right as seen."""
    turns = [math.radians(start + (stop - start) * i / n) for i in range(n + 1)]
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]


def _box(left: float, top: float, right: float, bottom: float) -> Points:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _star(points: int, inner: float) -> Points:
    tips = [(1 if i % 2 == 0 else inner, math.pi * (i / points - 0.5)) for i in range(2 * points)]
    return [(r * math.cos(t), r * math.sin(t)) for r, t in tips]


def _heart() -> Points:
    turns = [2 * math.pi * i / 72 for i in range(72)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t) + 2.5) / 15,
        )
        for t in turns
    ]


def _crescent() -> Points:
    """The part of the unit disc that a smaller disc, moved right, leaves: they meet at +-angle."""
    shift, inner = 0.45, 0.8
    x = (1 + shift**2 - inner**2) / (2 * shift)
    outer_angle = math.degrees(math.acos(x))
    inner_angle = math.degrees(math.atan2(math.sqrt(1 - x * x), x - shift))
    outer = _ellipse(0, 0, 1, 1, outer_angle, 360 - outer_angle)
    hole = _ellipse(shift, 0, inner, inner, 360 - inner_angle, inner_angle)
    return [(px + 0.12, py) for px, py in outer + hole]


_CLOUD: list[Points] = [
    _ellipse(-0.5, 0.16, 0.46, 0.42),
    _ellipse(0.02, -0.12, 0.56, 0.54),
    _ellipse(0.56, 0.18, 0.42, 0.4),
    _box(-0.5, 0.1, 0.56, 0.58),
]
_PLUS: Points = [
    (-0.32, -0.95),
    (0.32, -0.95),
    (0.32, -0.32),
    (0.95, -0.32),
    (0.95, 0.32),
    (0.32, 0.32),
    (0.32, 0.95),
    (-0.32, 0.95),
    (-0.32, 0.32),
    (-0.95, 0.32),
    (-0.95, -0.32),
    (-0.32, -0.32),
]

DRAWINGS: dict[Noun, list[tuple[Points, str | Rgb]]] = {
    Noun.CIRCLE: [(_ellipse(0, 0, 0.95, 0.95, n=72), "main")],
    Noun.SQUARE: [(_box(-0.84, -0.84, 0.84, 0.84), "main")],
    Noun.TRIANGLE: [([(0, -0.95), (0.98, 0.78), (-0.98, 0.78)], "main")],
    Noun.STAR: [(_star(5, 0.42), "main")],
    Noun.HEART: [(_heart(), "main")],
    Noun.DIAMOND: [([(0, -1), (0.68, 0), (0, 1), (-0.68, 0)], "main")],
    Noun.CROSS: [(_PLUS, "main")],
    Noun.RING: [(_ellipse(0, 0, 0.96, 0.96, n=72) + _ellipse(0, 0, 0.54, 0.54, 360, 0, n=72), "main")],
    Noun.MOON: [(_crescent(), "main")],
    Noun.HOUSE: [
        (_box(-0.72, -0.12, 0.72, 0.9), "main"),
        ([(-0.98, -0.06), (0, -0.95), (0.98, -0.06)], "dark"),
        (_box(-0.2, 0.34, 0.2, 0.9), "dark"),
        (_box(-0.56, 0.1, -0.26, 0.4), _WINDOW),
        (_box(0.26, 0.1, 0.56, 0.4), _WINDOW),
    ],
    Noun.TREE: [
        (_box(-0.14, 0.2, 0.14, 0.98), _TRUNK),
        (_ellipse(0, -0.28, 0.72, 0.7), "main"),
    ],
    Noun.BOAT: [
        (_box(-0.06, -0.9, 0.04, 0.4), _TRUNK),
        ([(0.1, -0.9), (0.82, 0.26), (0.1, 0.26)], PALE),
        ([(-0.12, -0.7), (-0.12, 0.26), (-0.66, 0.26)], PALE),
        ([(-0.96, 0.38), (0.96, 0.38), (0.62, 0.88), (-0.62, 0.88)], "main"),
    ],
    Noun.FLOWER: [
        (_box(-0.06, 0.2, 0.06, 1), (60, 140, 70)),
        *(
            (
                _ellipse(
                    0.42 * math.cos(math.radians(60 * i + 30)),
                    -0.32 + 0.42 * math.sin(math.radians(60 * i + 30)),
                    0.3,
                    0.3,
                ),
                "main",
            )
            for i in range(6)
        ),
        (_ellipse(0, -0.32, 0.24, 0.24), (255, 214, 64)),
    ],
    Noun.FISH: [
        ([(0.3, 0), (0.98, -0.52), (0.86, 0), (0.98, 0.52)], "dark"),
        (_ellipse(-0.22, 0, 0.74, 0.5), "main"),
        (_ellipse(-0.56, -0.12, 0.12, 0.12), PALE),
        (_ellipse(-0.58, -0.12, 0.06, 0.06), _DARK_EYE),
    ],
    Noun.CAT: [
        ([(-0.82, -0.1), (-0.76, -0.98), (-0.1, -0.6)], "main"),
        ([(0.82, -0.1), (0.76, -0.98), (0.1, -0.6)], "main"),
        (_ellipse(0, 0.1, 0.88, 0.78), "main"),
        (_ellipse(-0.36, -0.02, 0.17, 0.19), PALE),
        (_ellipse(0.36, -0.02, 0.17, 0.19), PALE),
        (_ellipse(-0.36, 0, 0.08, 0.14), _DARK_EYE),
        (_ellipse(0.36, 0, 0.08, 0.14), _DARK_EYE),
        ([(-0.14, 0.3), (0.14, 0.3), (0, 0.46)], (244, 150, 160)),
    ],
    Noun.CLOUD: [(points, "main") for points in _CLOUD],
    Noun.SUN: [(_star(12, 0.72), "main"), (_ellipse(0, 0, 0.58, 0.58), "light")],
    Noun.MOUNTAIN: [
        ([(0.36, -0.28), (1, 0.78), (-0.3, 0.78)], "dark"),
        ([(-0.24, -0.86), (0.62, 0.78), (-1, 0.78)], "main"),
        (
            [(-0.24, -0.86), (0.015, -0.37), (-0.13, -0.5), (-0.26, -0.3), (-0.37, -0.5), (-0.475, -0.37)],
            PALE,
        ),
    ],
    Noun.ROBOT: [
        (_box(-0.05, -0.98, 0.05, -0.7), "dark"),
        (_ellipse(0, -0.92, 0.12, 0.12), (240, 70, 60)),
        (_box(-0.62, -0.72, 0.62, 0.22), "main"),
        (_ellipse(-0.28, -0.3, 0.17, 0.17), PALE),
        (_ellipse(0.28, -0.3, 0.17, 0.17), PALE),
        (_ellipse(-0.28, -0.3, 0.08, 0.08), _DARK_EYE),
        (_ellipse(0.28, -0.3, 0.08, 0.08), _DARK_EYE),
        (_box(-0.32, 0, 0.32, 0.09), _DARK_EYE),
        (_box(-0.46, 0.3, 0.46, 0.96), "dark"),
    ],
}
_GEOMETRIC = (
    Noun.CIRCLE,
    Noun.SQUARE,
    Noun.TRIANGLE,
    Noun.STAR,
    Noun.HEART,
    Noun.DIAMOND,
    Noun.CROSS,
    Noun.RING,
    Noun.SUN,
)
