"""From a scene to one of the many prompts that mean it.

The model card states this grammar. Whatever a prompt leaves out is left out of the scene too.
"""

import random
import re
import string

from model.training.world import (
    SCENIC,
    Background,
    Colour,
    Noun,
    Place,
    Relation,
    Scene,
    Setting,
    Size,
    Thing,
)

NOUNS: dict[Noun, tuple[tuple[str, str], ...]] = {
    Noun.CIRCLE: (("circle", "circles"), ("disc", "discs"), ("ball", "balls"), ("dot", "dots")),
    Noun.SQUARE: (("square", "squares"), ("box", "boxes"), ("cube", "cubes")),
    Noun.TRIANGLE: (("triangle", "triangles"), ("pyramid", "pyramids")),
    Noun.STAR: (("star", "stars"),),
    Noun.HEART: (("heart", "hearts"),),
    Noun.DIAMOND: (("diamond", "diamonds"), ("rhombus", "rhombuses")),
    Noun.CROSS: (("cross", "crosses"), ("plus sign", "plus signs")),
    Noun.RING: (("ring", "rings"), ("donut", "donuts"), ("hoop", "hoops")),
    Noun.MOON: (("moon", "moons"), ("crescent", "crescents"), ("crescent moon", "crescent moons")),
    Noun.HOUSE: (("house", "houses"), ("home", "homes"), ("cottage", "cottages")),
    Noun.TREE: (("tree", "trees"),),
    Noun.BOAT: (("boat", "boats"), ("sailboat", "sailboats"), ("ship", "ships")),
    Noun.FLOWER: (("flower", "flowers"), ("daisy", "daisies"), ("blossom", "blossoms")),
    Noun.FISH: (("fish", "fish"), ("goldfish", "goldfish")),
    Noun.CAT: (("cat face", "cat faces"), ("cat", "cats"), ("kitten", "kittens")),
    Noun.CLOUD: (("cloud", "clouds"),),
    Noun.SUN: (("sun", "suns"),),
    Noun.MOUNTAIN: (("mountain", "mountains"), ("peak", "peaks")),
    Noun.ROBOT: (("robot", "robots"), ("android", "androids")),
}
"""Singular and plural; the first pair is the usual word."""

KIN: dict[Noun, tuple[str, ...]] = {
    Noun.CIRCLE: ("apple", "orange fruit", "planet", "coin", "balloon", "sphere", "globe", "button", "wheel"),
    Noun.SQUARE: ("gift", "present", "book", "window", "door", "phone", "table", "laptop", "tile"),
    Noun.TRIANGLE: ("tent", "pizza slice", "arrow", "cone"),
    Noun.STAR: ("sparkle", "starfish", "snowflake"),
    Noun.HEART: ("love", "valentine", "kiss"),
    Noun.DIAMOND: ("gem", "crystal", "kite", "jewel"),
    Noun.CROSS: ("x", "medical sign", "windmill"),
    Noun.RING: ("bracelet", "tire", "bagel", "halo", "hole"),
    Noun.MOON: ("banana", "croissant"),
    Noun.HOUSE: ("castle", "building", "church", "city", "barn", "tower", "school", "shop", "hut"),
    Noun.TREE: ("forest", "palm", "oak", "pine", "bush", "plant", "mushroom", "broccoli"),
    Noun.BOAT: ("car", "truck", "train", "bicycle", "plane", "bus", "yacht", "rocket", "motorcycle"),
    Noun.FLOWER: ("tulip", "rose bush", "sunflower", "lily", "bouquet", "butterfly", "bee"),
    Noun.FISH: ("bird", "whale", "shark", "dolphin", "duck", "snake", "dragon", "parrot", "turtle"),
    Noun.CAT: (
        "dog",
        "puppy",
        "lion",
        "tiger",
        "fox",
        "bear",
        "rabbit",
        "animal",
        "wolf",
        "mouse",
        "owl",
        "horse",
        "cow",
        "panda",
    ),
    Noun.CLOUD: ("smoke", "sheep", "fog", "snow"),
    Noun.SUN: ("lamp", "light", "fire", "lemon"),
    Noun.MOUNTAIN: ("volcano", "hill", "rock", "cliff", "iceberg"),
    Noun.ROBOT: (
        "man",
        "woman",
        "person",
        "girl",
        "boy",
        "astronaut",
        "child",
        "king",
        "face",
        "portrait",
        "people",
        "machine",
        "computer",
        "knight",
        "wizard",
    ),
}
"""Words outside the world, and what is drawn for them."""

COLOURS: dict[Colour, tuple[str, ...]] = {
    Colour.RED: ("red", "crimson", "scarlet"),
    Colour.GREEN: ("green", "emerald"),
    Colour.BLUE: ("blue", "navy"),
    Colour.YELLOW: ("yellow", "golden"),
    Colour.ORANGE: ("orange",),
    Colour.PURPLE: ("purple", "violet"),
    Colour.PINK: ("pink", "rose"),
    Colour.BROWN: ("brown",),
    Colour.BLACK: ("black",),
    Colour.WHITE: ("white",),
    Colour.GREY: ("grey", "gray", "silver"),
    Colour.CYAN: ("cyan", "turquoise", "teal"),
}
SIZES: dict[Size, tuple[str, ...]] = {
    Size.SMALL: ("small", "little", "tiny"),
    Size.MEDIUM: ("", "", "", "medium"),
    Size.LARGE: ("large", "big", "huge", "giant"),
}
NUMBERS: dict[int, tuple[str, ...]] = {2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}
PLACES: dict[Place, tuple[str, ...]] = {
    Place.CENTRE: ("", "", "in the centre", "in the center", "in the middle"),
    Place.LEFT: ("on the left", "on the left side", "to the left", "at the left"),
    Place.RIGHT: ("on the right", "on the right side", "to the right", "at the right"),
    Place.TOP: ("at the top", "on top", "in the upper part", "up high"),
    Place.BOTTOM: ("at the bottom", "in the lower part", "down low"),
}
RELATIONS: dict[Relation, tuple[str, ...]] = {
    Relation.ABOVE: ("above", "over", "on top of"),
    Relation.BELOW: ("below", "under", "beneath"),
    Relation.LEFT_OF: ("left of", "to the left of", "on the left of"),
    Relation.RIGHT_OF: ("right of", "to the right of", "on the right of"),
    Relation.NEXT_TO: ("next to", "beside", "and", "with"),
}
PLAIN_FORMS = (
    "on a {} background",
    "with a {} background",
    "against a {} background",
    "on {}",
    "in front of a {} wall",
    "on a plain {} background",
)
GRADIENT_FORMS = (
    "on a {} to {} gradient background",
    "on a gradient from {} to {}",
    "over a {}-{} gradient",
    "with a gradient background from {} to {}",
)
SETTINGS: dict[Setting, tuple[str, ...]] = {
    Setting.SKY: ("in the sky", "in a blue sky", "on a sky background", "in a cloudy sky", "up in the sky"),
    Setting.SEA: ("on the sea", "at sea", "by the sea", "on the ocean", "on the water", "on a lake"),
    Setting.NIGHT: ("at night", "in the night sky", "under the stars", "on a starry night", "at midnight"),
    Setting.SUNSET: ("at sunset", "in front of a sunset", "at dusk", "at dawn", "in the evening"),
    Setting.MEADOW: ("in a meadow", "on the grass", "in a field", "in a garden", "on a green hill"),
    Setting.DESERT: ("in the desert", "on the sand", "in a sandy desert", "among the dunes", "on a beach"),
}
ALONE: dict[Setting, tuple[str, ...]] = {
    Setting.SKY: ("the sky", "a blue sky with clouds", "sky"),
    Setting.SEA: ("the sea", "the ocean", "a calm sea", "a lake"),
    Setting.NIGHT: ("the night sky", "a starry night", "night", "stars at night"),
    Setting.SUNSET: ("a sunset", "sunset", "a beautiful sunset", "the evening sky"),
    Setting.MEADOW: ("a meadow", "a green field", "a garden", "grass"),
    Setting.DESERT: ("a desert", "the desert", "sand dunes", "a beach"),
}
OPENINGS = (
    "a photo of ",
    "a picture of ",
    "a picture with ",
    "an image of ",
    "a drawing of ",
    "a painting of ",
    "an illustration of ",
    "an icon of ",
    "draw ",
    "show me ",
    "there is ",
    "please paint ",
    "i want ",
)
ENDINGS = (
    ", high quality",
    ", detailed",
    ", 4k",
    ", flat design",
    ", minimalist",
    " please",
    ".",
    ", best quality, masterpiece",
    ", vector art",
    "!",
)


_FILLER_TEXT = """
hello world what is the meaning of life and why do we dream about many things today tomorrow
very beautiful amazing cinematic lighting realistic render style of art concept trending best
with for from that this these who when how one some test prompt nothing something epic dramatic
holding wearing looking walking running eating reading sitting standing happy sad old young modern
ancient wooden metal glass stone soft sharp focus depth lens camera film colorful abstract music
time dark bright idea story word freedom peace unreal engine studio hdr wallpaper poster logo
"""
_FILLERS = tuple(_FILLER_TEXT.split())


def random_prompt(scene: Scene, rng: random.Random) -> str:
    """Word `scene`, with synonyms, word orders, openings and endings that change nothing."""
    subject = _subject(scene, rng)
    where = _background(scene.background, rng, alone=not subject)
    if subject and where and rng.random() < 0.15:
        prompt = _before(scene.background, where, subject)
    else:
        opening = rng.choice(OPENINGS) if rng.random() < 0.45 else ""
        prompt = opening + f"{subject} {where}".strip()
    if rng.random() < 0.2:
        prompt += rng.choice(ENDINGS)
    if rng.random() < 0.08:
        prompt = _with_strange_word(prompt, rng)
    return prompt if rng.random() < 0.75 else prompt.capitalize()


def strange_prompt(rng: random.Random) -> tuple[str, Scene]:
    """A prompt from outside, and the nearest thing in the world: a kindred noun, or the sky for no noun."""
    if rng.random() < 0.65:
        noun = rng.choice(list(Noun))
        colour = rng.choice(list(Colour)) if rng.random() < 0.4 else None
        background = Background() if rng.random() < 0.6 else Background(rng.choice(SCENIC))
        scene = Scene(background, (Thing(noun, colour),))
        words = [_colour_word(colour, rng) if colour else "", rng.choice(KIN[noun])]
        subject = _article(" ".join(["a", *(word for word in words if word)]))
        where = _background(background, rng, alone=False)
        prompt = f"{subject} {where}".strip()
        if rng.random() < 0.5:
            prompt += " " + " ".join(rng.choices(_FILLERS, k=rng.randint(1, 5)))
        if rng.random() < 0.5:
            prompt = rng.choice(OPENINGS) + prompt
        return prompt, scene
    count = rng.randint(1, 8)
    if rng.random() < 0.5:
        return " ".join(rng.choices(_FILLERS, k=count)), Scene(Background(Setting.SKY))
    start = rng.choice((0x61, 0x61, 0xC0, 0x400, 0x600, 0x3040, 0x4E00, 0x1F600))
    letters = [chr(start + rng.randrange(26)) for _ in range(5 * count)]
    return "".join(" " if rng.random() < 0.15 else letter for letter in letters), Scene(
        Background(Setting.SKY)
    )


def _subject(scene: Scene, rng: random.Random) -> str:
    if not scene.things:
        return ""
    if scene.relation is not None:
        first, second = (_one(thing, "", rng) for thing in scene.things)
        return f"{first} {rng.choice(RELATIONS[scene.relation])} {second}"
    (thing,) = scene.things
    if scene.count > 1:
        words = (rng.choice(NUMBERS[scene.count]), _colour(thing, rng), _noun(thing, rng, plural=True))
        return " ".join(word for word in words if word)
    return f"{_one(thing, rng.choice(SIZES[scene.size]), rng)} {rng.choice(PLACES[scene.place])}".strip()


def _one(thing: Thing, size: str, rng: random.Random) -> str:
    described = " ".join(word for word in (size, _colour(thing, rng), _noun(thing, rng)) if word)
    if rng.random() < 0.06:
        return described
    return _article(f"{'the' if rng.random() < 0.05 else 'a'} {described}")


def _noun(thing: Thing, rng: random.Random, *, plural: bool = False) -> str:
    words = NOUNS[thing.noun]
    return (words[0] if rng.random() < 0.6 else rng.choice(words))[plural]


def _colour(thing: Thing, rng: random.Random) -> str:
    return _colour_word(thing.colour, rng) if thing.colour else ""


def _colour_word(colour: Colour, rng: random.Random) -> str:
    return COLOURS[colour][0] if rng.random() < 0.75 else rng.choice(COLOURS[colour])


def _background(background: Background, rng: random.Random, *, alone: bool) -> str:
    words = [_colour_word(colour, rng) for colour in background.colours]
    match background.setting:
        case Setting.OPEN:
            return ""
        case Setting.PLAIN:
            (word,) = words
            return _article(rng.choice(PLAIN_FORMS).format(word))
        case Setting.GRADIENT:
            return _article(rng.choice(GRADIENT_FORMS).format(*words))
        case setting:
            return rng.choice((ALONE if alone else SETTINGS)[setting])


def _article(phrase: str) -> str:
    """Write `an` for `a` before vowels."""
    return re.sub(r"\ba (?=[aeiou])", "an ", phrase)


def _before(background: Background, where: str, subject: str) -> str:
    """The background first: `a blue background with a red circle`, `at night, a boat`."""
    if background.setting is Setting.PLAIN and where.endswith("background"):
        colour = where.removesuffix(" background").split()[-1]
        return _article(f"a {colour} background with {subject}")
    return f"{where}, {subject}"


def _with_strange_word(prompt: str, rng: random.Random) -> str:
    """Put a word that means nothing somewhere: what is unknown must not disturb what is known."""
    strange = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(3, 8)))
    words = prompt.split(" ")
    words.insert(rng.randint(0, len(words)), strange)
    return " ".join(words)
