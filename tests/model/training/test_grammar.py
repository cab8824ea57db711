import random
import re

import pytest

from model.training.grammar import COLOURS, KIN, NOUNS, random_prompt, strange_prompt
from model.training.world import (
    Background,
    Colour,
    Noun,
    Relation,
    Scene,
    Setting,
    Thing,
    random_scene,
)

STAR = Thing(Noun.STAR, Colour.GREEN)


def wordings(scene: Scene, count: int = 200) -> list[str]:
    rng = random.Random(0)
    return [random_prompt(scene, rng).lower() for _ in range(count)]


def test_a_prompt_names_what_is_in_the_scene_and_nothing_else() -> None:
    rng = random.Random(1)
    for _ in range(500):
        scene = random_scene(rng)
        prompt = random_prompt(scene, rng).lower()
        for thing in scene.things:
            assert any(word in prompt for pair in NOUNS[thing.noun] for word in pair), prompt
            assert thing.colour is None or any(word in prompt for word in COLOURS[thing.colour]), prompt
        for colour in scene.background.colours:
            assert any(word in prompt for word in COLOURS[colour]), prompt


def test_one_scene_has_many_wordings() -> None:
    assert len(set(wordings(Scene(Background(Setting.MEADOW), (STAR,))))) > 150


def test_the_background_may_come_first() -> None:
    blue = Background(Setting.PLAIN, (Colour.BLUE,))
    assert any(
        re.search(r"(blue|navy) background with .*star", text) for text in wordings(Scene(blue, (STAR,)))
    )


@pytest.mark.parametrize("wrong", [r"\ba [aeiou]", r"\ban [^aeiou]", "  ", " ,"])
def test_prompts_are_spelt_as_people_spell(wrong: str) -> None:
    rng = random.Random(2)
    for _ in range(500):
        prompt = random_prompt(random_scene(rng), rng)
        assert not re.search(wrong, prompt.lower()) or _has_strange_word(prompt), prompt


def _has_strange_word(prompt: str) -> bool:
    return re.search(r"\b(a|an) [a-z]{3,8} ", prompt) is not None


def test_a_relation_reads_from_the_first_thing_to_the_second() -> None:
    moon = Thing(Noun.MOON, Colour.PINK)
    for prompt in wordings(Scene(Background(), (STAR, moon), relation=Relation.ABOVE)):
        assert prompt.index("star") < min(
            prompt.find(word) for word in ("moon", "crescent") if word in prompt
        )


def test_words_from_outside_get_the_nearest_thing_or_the_sky() -> None:
    rng = random.Random(3)
    for _ in range(300):
        prompt, scene = strange_prompt(rng)
        if scene.things:
            assert any(word in prompt.lower() for word in KIN[scene.things[0].noun]), prompt
        else:
            assert scene == Scene(Background(Setting.SKY))
