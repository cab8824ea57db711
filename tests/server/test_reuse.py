"""What decides a picture, and where one is found that needs no run."""

import itertools
from typing import Any

import msgspec
import pytest

from server.admission import Admission
from server.generation import Adapter, GenerationRequest, Image, ImageRequest, Priority, Source, Timings
from server.lru import ENTRY_BYTES
from server.metrics import Metrics
from server.reuse import Gallery, picture_key
from server.roster import Pending
from tests.server import models

STYLE = Adapter(name="style", digest="d1")
MODEL = msgspec.structs.replace(models.MODEL, device="cuda:0")


def image(**changes: Any) -> ImageRequest:
    fields: dict[str, Any] = {"id": "a", "prompt": "a", "width": 256, "height": 256, "steps": 4, "seed": 1}
    return GenerationRequest(**fields | {"max_sequence_length": 64} | changes).images()[0]


def key(**changes: Any) -> str:
    return picture_key(image(**changes), MODEL)


def test_everything_that_decides_a_picture_is_in_its_key() -> None:
    keys = [
        key(),
        key(prompt="b"),
        key(width=272),
        key(height=272),
        key(steps=3),
        key(seed=2),
        key(max_sequence_length=128),
        key(guidance_scale=2.0),
        key(guidance_scale=2.0, negative_prompt="b"),
        key(image_format="jpeg"),
        key(image_format="jpeg", quality=80),
        key(embed_prompt=True),
        key(adapters=(STYLE,)),
        key(adapters=(msgspec.structs.replace(STYLE, scale=0.5),)),
        key(adapters=(msgspec.structs.replace(STYLE, digest="d2"),)),
    ]
    assert all(one != other for one, other in itertools.combinations(keys, 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "b"},
        {"priority": Priority.HIGH},
        {"key": "alice"},
        {"deadline_s": 1.0},
        {"negative_prompt": "b"},
        {"guidance_scale": 1.0},
        {"quality": 80},
    ],
    ids=str,
)
def test_what_has_no_say_in_a_picture_is_not_in_its_key(changes: dict[str, Any]) -> None:
    assert key(**changes) == key()


SOURCE = Source(pixels=b"p", strength=0.6)


def source(**changes: Any) -> Source:
    return msgspec.structs.replace(SOURCE, **changes)


def test_everything_that_decides_of_a_source_is_in_the_key() -> None:
    keys = [
        key(),
        key(source=SOURCE),
        key(source=source(pixels=b"q")),
        key(source=source(strength=0.4)),
        key(source=source(strength=1.0)),
        key(source=source(mask=b"m")),
        key(source=source(mask=b"m", strength=1.0)),
        key(source=source(mask=b"n")),
        key(source=source(blend=b"m")),
        key(source=source(blend=b"m", pixels=b"q", strength=1.0)),
        key(source=source(blend=b"m", strength=1.0)),
    ]
    assert all(one != other for one, other in itertools.combinations(keys, 2))


def test_a_strength_counts_by_the_steps_that_it_leaves() -> None:
    assert key(source=source(strength=0.7)) == key(source=SOURCE)
    assert key(source=source(strength=0.8)) == key(source=source(strength=1.0))


def test_pixels_that_nobody_looks_at_are_not_in_the_key() -> None:
    assert key(source=source(strength=1.0, pixels=b"q")) == key(source=source(strength=1.0))


def test_a_source_is_hashed_once_for_all_pictures_of_a_request() -> None:
    images = GenerationRequest(
        id="b",
        prompt="a",
        width=256,
        height=256,
        steps=4,
        seed=7,
        num_images=4,
        max_sequence_length=64,
        source=SOURCE,
    ).images()
    first = images[0].source
    assert first is not None
    assert all(each.source is first and first.digests is each.source.digests for each in images)


def test_of_an_adapter_its_file_has_a_say_and_its_name_has_none() -> None:
    renamed = msgspec.structs.replace(STYLE, name="twin")
    assert key(adapters=(STYLE,)) == key(adapters=(renamed,))


def test_pictures_of_two_requests_are_the_same_where_their_seeds_meet() -> None:
    keys = [picture_key(each, MODEL) for each in GenerationRequest(
        id="b", prompt="a", width=256, height=256, steps=4, seed=7, num_images=4, max_sequence_length=64
    ).images()]  # fmt: skip
    assert keys[1] == key(seed=8)


def test_guidance_in_the_weights_counts_at_any_scale_and_has_no_negative_prompt() -> None:
    model = msgspec.structs.replace(MODEL, guidance_embed=True)
    assert picture_key(image(guidance_scale=0.5), model) != picture_key(image(), model)
    negative = image(guidance_scale=3.0, negative_prompt="b")
    assert picture_key(negative, model) == picture_key(image(guidance_scale=3.0), model)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"digest": "e"}, False),
        ({"dtype": "bfloat16"}, False),
        ({"numerics": "fast"}, False),
        ({"quantize": "fp8"}, False),
        ({"device": "cpu"}, False),
        ({"device": "cuda:1"}, True),
        ({"max_steps": 9}, True),
    ],
    ids=str,
)
def test_the_loaded_model_is_in_the_key(changes: dict[str, Any], same: bool) -> None:
    assert (picture_key(image(), msgspec.structs.replace(MODEL, **changes)) == key()) is same


def picture(data: bytes = b"picture") -> Image:
    return Image(data=data, content_type="image/png", width=1, height=1, seed=1, timings=Timings())


def run_of(name: str | None) -> Pending:
    (admitted,) = Admission(1.0).admit([image()], MODEL, workers=1, deadline_s=None)
    return Pending(image(), name, admitted, deadline=None, came=0.0)


def test_a_run_is_found_until_it_is_settled_and_its_picture_after_that() -> None:
    gallery = Gallery(10 * ENTRY_BYTES, metrics=Metrics())
    run = run_of("k")
    assert gallery.find("k") is None
    gallery.began([run])
    assert gallery.find("k") is run
    gallery.finished(run, picture())
    run.settle(picture())
    assert gallery.find("k") == picture()
    gallery.ended(run)
    assert gallery.find("k") == picture()


def test_a_settled_run_is_not_found_though_its_waiters_are_still_there() -> None:
    gallery = Gallery(0, metrics=Metrics())
    run = run_of("k")
    gallery.began([run])
    gallery.finished(run, picture())
    run.settle(picture())
    assert gallery.find("k") is None


def test_the_end_of_a_run_hides_no_newer_one() -> None:
    gallery = Gallery(0, metrics=Metrics())
    older, newer = run_of("k"), run_of("k")
    gallery.began([older])
    gallery.began([newer])
    gallery.ended(older)
    assert gallery.find("k") is newer
    gallery.ended(newer)
    assert gallery.find("k") is None


def test_a_picture_without_a_key_is_nobody_elses() -> None:
    gallery = Gallery(10 * ENTRY_BYTES, metrics=Metrics())
    run = run_of(None)
    gallery.began([run])
    gallery.finished(run, picture())
    gallery.ended(run)
    assert not gallery._runs
    assert len(gallery._finished) == 0
