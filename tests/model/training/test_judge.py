"""The judge must read what is drawn before it may judge what is generated."""

from collections import Counter

import numpy as np
import pytest

from model.training.chance import Chance
from model.training.drawing import draw
from model.training.evaluate import findings, held_out_scenes
from model.training.judge import noun_of, objects
from model.training.world import Background, Colour, Noun, Scene, Setting, Thing, is_held_out

WHITE = Background(Setting.PLAIN, (Colour.WHITE,))


@pytest.mark.parametrize(("side", "count"), [(256, 60), (400, 20)])
def test_the_judge_finds_drawn_scenes_right(side: int, count: int) -> None:
    wrong: Counter[str] = Counter()
    total = 0
    chances = np.random.default_rng(0)
    for scene, prompt in held_out_scenes(count):
        chance = Chance.draw(chances, side // 16, side // 16)
        for measure, right in findings(scene, draw(scene, chance, side, side), chance):
            total += 1
            wrong[f"{measure}: {prompt}"] += not right
    assert sum(wrong.values()) / total <= 0.01, +wrong


@pytest.mark.parametrize("noun", Noun)
def test_every_noun_is_told_from_the_others(noun: Noun) -> None:
    picture = draw(
        Scene(WHITE, (Thing(noun, Colour.PURPLE),)), Chance.draw(np.random.default_rng(3), 16, 16), 256, 256
    )
    (found,) = objects(picture)
    assert noun_of(found) is noun


def test_a_wrong_picture_is_found_wrong_in_what_is_wrong() -> None:
    chance = Chance.draw(np.random.default_rng(1), 16, 16)
    asked = Scene(WHITE, (Thing(Noun.CIRCLE, Colour.RED),))
    drawn = Scene(Background(Setting.PLAIN, (Colour.BLACK,)), (Thing(Noun.CROSS, Colour.GREEN),), count=3)
    found = dict(findings(asked, draw(drawn, chance, 256, 256), chance))
    assert found == {
        "background": False,
        "count": False,
        "shape": False,
        "object colour": False,
        "place": False,
    }


def test_an_empty_picture_has_nothing_right_but_its_background() -> None:
    chance = Chance.draw(np.random.default_rng(1), 16, 16)
    asked = Scene(WHITE, (Thing(Noun.CIRCLE, Colour.RED),))
    found = dict(findings(asked, draw(Scene(WHITE), chance, 256, 256), chance))
    assert found == {
        "background": True,
        "count": False,
        "shape": False,
        "object colour": False,
        "place": False,
    }


def test_held_out_scenes_are_always_the_same_and_were_never_trained_on() -> None:
    scenes = held_out_scenes(40)
    assert scenes == held_out_scenes(40)
    assert all(is_held_out(scene) for scene, _ in scenes)
