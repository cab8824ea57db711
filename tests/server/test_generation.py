"""A request and its pictures."""

import pytest

from server.generation import GenerationRequest, Priority, Source, content_type, image_tokens


def test_a_request_is_cut_into_its_pictures() -> None:
    request = GenerationRequest(
        id="r",
        prompt="a",
        width=512,
        height=256,
        steps=3,
        seed=40,
        max_sequence_length=128,
        negative_prompt="b",
        guidance_scale=2.5,
        num_images=3,
        image_format="jpeg",
        quality=80,
        embed_prompt=True,
        priority=Priority.HIGH,
        deadline_s=5.0,
        previews=1,
    )
    images = request.images()
    assert [(image.id, image.seed) for image in images] == [("r/0", 40), ("r/1", 41), ("r/2", 42)]
    own = {"id", "seed", "num_images", "previews"}
    assert all(image.previews == (2,) for image in images)
    shared = [name for name in GenerationRequest.__struct_fields__ if name not in own]
    assert all(getattr(image, name) == getattr(request, name) for image in images for name in shared)


@pytest.mark.parametrize(
    ("source", "run", "encodes"),
    [
        (None, 4, False),
        (Source(pixels=b"", strength=0.3), 2, True),
        (Source(pixels=b"", strength=0.8), 4, False),
        (Source(pixels=b"", strength=1.0, blend=b""), 4, False),
        (Source(pixels=b"", strength=1.0, mask=b""), 4, True),
    ],
    ids=["none", "half", "all steps", "all steps and a blend", "all steps and a mask"],
)
def test_a_source_leaves_out_steps_and_is_encoded_where_it_has_a_say(
    source: Source | None, run: int, encodes: bool
) -> None:
    request = GenerationRequest(
        id="r",
        prompt="a",
        width=256,
        height=256,
        steps=4,
        seed=1,
        max_sequence_length=64,
        source=source,
        previews=3,
    )
    (image,) = request.images()
    assert request.run_steps == image.run_steps == run
    assert image.encodes_source is encodes
    assert len(image.previews) == run - 1, "after the last step the picture is done"


def test_a_token_is_a_patch_of_sixteen_by_sixteen() -> None:
    assert image_tokens(1024, 1024) == 4096
    assert image_tokens(272, 496) == 17 * 31


def test_formats_name_their_content_type() -> None:
    assert [content_type(kind) for kind in ("png", "jpeg", "webp")] == [
        "image/png",
        "image/jpeg",
        "image/webp",
    ]  # type: ignore[arg-type]
