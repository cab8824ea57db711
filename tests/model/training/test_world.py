import random

from model.training.world import (
    Background,
    Colour,
    Noun,
    Place,
    Relation,
    Scene,
    Setting,
    Size,
    Thing,
    is_held_out,
    random_scene,
    slots,
    swallowed,
)

PLAIN = Background(Setting.PLAIN, (Colour.WHITE,))
CAT, FISH = Thing(Noun.CAT), Thing(Noun.FISH)


def scenes(count: int) -> list[Scene]:
    rng = random.Random(0)
    return [random_scene(rng) for _ in range(count)]


def test_every_object_lies_within_the_picture_and_apart_from_the_others() -> None:
    for scene in scenes(500):
        placed = slots(scene)
        for slot in placed:
            for at in (slot.x, slot.y):
                assert slot.radius <= at <= 1 - slot.radius or slot.radius == 0.34
        for i, one in enumerate(placed):
            for other in placed[i + 1 :]:
                assert max(abs(one.x - other.x), abs(one.y - other.y)) >= one.radius + other.radius


def test_a_relation_means_the_same_from_either_side() -> None:
    for relation, inverse in ((Relation.ABOVE, Relation.BELOW), (Relation.LEFT_OF, Relation.RIGHT_OF)):
        assert slots(Scene(PLAIN, (CAT, FISH), relation=relation)) == slots(
            Scene(PLAIN, (FISH, CAT), relation=inverse)
        )


def test_above_is_higher_and_left_of_is_further_left() -> None:
    upper, lower = slots(Scene(PLAIN, (CAT, FISH), relation=Relation.ABOVE))
    assert (upper.thing, lower.thing) == (CAT, FISH)
    assert upper.y < lower.y
    left, right = slots(Scene(PLAIN, (CAT, FISH), relation=Relation.LEFT_OF))
    assert left.x < right.x


def test_a_count_gives_as_many_objects() -> None:
    for count in (1, 2, 3, 4):
        assert len(slots(Scene(PLAIN, (CAT,), count=count))) == count
    assert slots(Scene(PLAIN)) == ()


def test_places_and_sizes_decide_where_and_how_large() -> None:
    def slot(place: Place, size: Size = Size.MEDIUM) -> tuple[float, float, float]:
        (only,) = slots(Scene(PLAIN, (CAT,), place=place, size=size))
        return only.x, only.y, only.radius

    assert slot(Place.LEFT)[0] < slot(Place.CENTRE)[0] < slot(Place.RIGHT)[0]
    assert slot(Place.TOP)[1] < slot(Place.CENTRE)[1] < slot(Place.BOTTOM)[1]
    for place in Place:
        assert slot(place, Size.SMALL)[2] < slot(place)[2] < slot(place, Size.LARGE)[2]


def test_no_object_is_drawn_in_the_colour_of_its_background() -> None:
    for scene in scenes(500):
        assert not any(swallowed(thing.seen_colour, scene.background) for thing in scene.things)


def test_a_tenth_of_all_combinations_is_held_out_whatever_the_place() -> None:
    drawn = scenes(4000)
    assert 0.08 < sum(map(is_held_out, drawn)) / len(drawn) < 0.13
    for place in Place:
        scene = Scene(PLAIN, (CAT,), place=place)
        assert is_held_out(scene) == is_held_out(Scene(PLAIN, (CAT,)))


def test_every_part_of_the_world_turns_up() -> None:
    drawn = scenes(4000)
    assert {thing.noun for scene in drawn for thing in scene.things} == set(Noun)
    assert {scene.background.setting for scene in drawn} == set(Setting)
    assert {scene.relation for scene in drawn} == {None, *Relation}
    assert {scene.count for scene in drawn} == {1, 2, 3, 4}
