from collections.abc import Callable

import numpy as np
import pytest

from model.training.chance import Chance
from model.training.drawing import DRAWINGS, Picture, draw
from model.training.world import RGB, SCENIC, Background, Colour, Noun, Place, Scene, Setting, Thing

BLUE = Background(Setting.PLAIN, (Colour.BLUE,))
CIRCLE = Scene(BLUE, (Thing(Noun.CIRCLE, Colour.RED),))


def chance(seed: int = 0, rows: int = 16, columns: int = 16) -> Chance:
    return Chance.draw(np.random.default_rng(seed), rows, columns)


def middle(picture: Picture) -> tuple[int, ...]:
    return tuple(picture[picture.shape[0] // 2, picture.shape[1] // 2].tolist())


def test_a_red_circle_on_blue_is_red_in_the_middle_and_blue_around() -> None:
    picture = draw(CIRCLE, chance(), 256, 256)
    assert middle(picture) == RGB[Colour.RED]
    for corner in (picture[0, 0], picture[0, -1], picture[-1, 0], picture[-1, -1]):
        assert np.abs(corner.astype(int) - RGB[Colour.BLUE]).max() < 20


def test_the_same_scene_and_chance_give_the_same_picture() -> None:
    assert np.array_equal(draw(CIRCLE, chance(), 256, 256), draw(CIRCLE, chance(), 256, 256))


def test_another_chance_moves_the_object_a_little() -> None:
    one, other = (draw(CIRCLE, chance(seed), 256, 256) for seed in (0, 1))
    changed = (one != other).any(-1).mean()
    assert changed > 0
    assert middle(one) == middle(other)


@pytest.mark.parametrize("sides", [(256, 384), (384, 256), (512, 512), (1024, 768)])
def test_objects_scale_with_the_picture_and_stay_round(sides: tuple[int, int]) -> None:
    height, width = sides
    picture = draw(CIRCLE, chance(0, height // 16, width // 16), height, width)
    red = np.linalg.norm(picture.astype(float) - RGB[Colour.RED], axis=2) < 30
    tall, wide = red.any(1).sum(), red.any(0).sum()
    assert tall == pytest.approx(wide, abs=3)
    assert 0.35 < tall / min(height, width) < 0.6


def test_every_noun_has_a_drawing_of_its_own() -> None:
    assert set(DRAWINGS) == set(Noun)
    drawn = {
        noun: draw(Scene(BLUE, (Thing(noun, Colour.RED),)), chance(), 256, 256).tobytes() for noun in Noun
    }
    assert len(set(drawn.values())) == len(Noun)


@pytest.mark.parametrize("setting", SCENIC)
def test_small_things_of_a_scenery_hang_on_the_noise_of_their_own_patch(setting: Setting) -> None:
    scene = Scene(Background(setting))
    one = chance()
    grain = one.grain.copy()
    grain[12, 3] = 2.0
    changed = (draw(scene, one, 256, 256) != draw(scene, Chance(one.whole, grain), 256, 256)).any(-1)
    changed[12 * 16 - 4 : 13 * 16 + 4, 3 * 16 - 4 : 4 * 16 + 4] = False
    assert not changed.any()


@pytest.mark.parametrize(
    ("place", "half"),
    [
        (Place.LEFT, lambda red: red[:, :128]),
        (Place.RIGHT, lambda red: red[:, 128:]),
        (Place.TOP, lambda red: red[:128]),
        (Place.BOTTOM, lambda red: red[128:]),
    ],
)
def test_a_place_is_where_it_says(place: Place, half: Callable[[np.ndarray], np.ndarray]) -> None:
    scene = Scene(BLUE, (Thing(Noun.SQUARE, Colour.RED),), place=place)
    picture = draw(scene, chance(), 256, 256)
    red = np.linalg.norm(picture.astype(float) - RGB[Colour.RED], axis=2) < 30
    assert half(red).sum() > 0.95 * red.sum() > 0
