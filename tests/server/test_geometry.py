"""Sizes that can be made, and where a picture lies in a larger one."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.generation import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE
from server.geometry import Borders, Size, contained, covering, extended, fitted, size_for

SIDES = st.integers(1, 8000)
BORDERS = st.builds(Borders, *[st.integers(0, MAX_SIDE)] * 4)


def can_be_made(size: Size) -> bool:
    return all(side % SIDE_MULTIPLE == 0 and MIN_SIDE <= side <= MAX_SIDE for side in size)


@given(SIDES, SIDES)
def test_any_picture_has_a_size_in_which_it_is_made(width: int, height: int) -> None:
    assert can_be_made(fitted(width, height))


@pytest.mark.parametrize(
    ("own", "made"),
    [
        ((512, 768), (512, 768)),
        ((500, 770), (496, 768)),
        ((4000, 3000), (1536, 1152)),
        ((3000, 4000), (1152, 1536)),
        ((100, 200), (256, 512)),
        ((1, 1), (256, 256)),
        ((1536, 100), (1536, 256)),  # as near as it goes
    ],
)
def test_sizes_keep_their_proportion_where_they_can(own: tuple[int, int], made: tuple[int, int]) -> None:
    assert fitted(*own) == made


def test_a_side_that_is_asked_for_brings_the_other_along() -> None:
    own = Size(1000, 500)
    assert size_for(own, width=512, height=None) == (512, 256)
    assert size_for(own, width=None, height=512) == (1024, 512)
    assert size_for(own, width=512, height=512) == (512, 512)
    assert size_for(own, width=None, height=None) == (992, 496)


def test_what_covers_is_cut_in_the_middle_and_what_is_contained_lies_there() -> None:
    assert covering(Size(400, 200), Size(256, 256)) == (100, 0, 300, 200)
    assert covering(Size(200, 400), Size(512, 256)) == (0, 150, 200, 250)
    canvas = contained(Size(400, 200), Size(512, 512))
    assert (canvas.inner, canvas.left, canvas.top) == ((512, 256), 0, 128)


@given(SIDES, SIDES, st.integers(16, 96), st.integers(16, 96))
@example(2499, 4000, 74, 16)  # 1184 * (2499 / 1184) is more than 2499
def test_what_covers_is_within_its_picture(width: int, height: int, across: int, down: int) -> None:
    made = Size(across * SIDE_MULTIPLE, down * SIDE_MULTIPLE)
    left, top, right, bottom = covering(Size(width, height), made)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


@given(SIDES, SIDES, BORDERS)
def test_any_borders_make_a_size_that_can_be_made(width: int, height: int, borders: Borders) -> None:
    canvas = extended(Size(width, height), borders)
    assert can_be_made(canvas.size)
    assert all(border >= 0 for border in canvas.borders)
    assert all(side >= 1 for side in canvas.inner)


@given(st.integers(1, 1000), st.integers(1, 1000), st.builds(Borders, *[st.integers(0, 250)] * 4))
def test_what_fits_keeps_its_pixels_and_has_at_least_its_borders(
    width: int, height: int, borders: Borders
) -> None:
    canvas = extended(Size(width, height), borders)
    assert canvas.inner == (width, height)
    assert all(got >= asked for got, asked in zip(canvas.borders, borders, strict=True))
    for grown, side in ((canvas.size.width, 0), (canvas.size.height, 2)):
        extra = sum(canvas.borders[side : side + 2]) - sum(borders[side : side + 2])
        assert extra < SIDE_MULTIPLE or grown == MIN_SIDE


@pytest.mark.parametrize(
    ("borders", "size", "corner"),
    [
        (Borders(right=56), (576, 512), (0, 0)),
        (Borders(left=56), (576, 512), (64, 0)),  # the border that there is grows
        (Borders(left=64, right=64), (640, 512), (64, 0)),
        (Borders(left=40, right=20), (576, 512), (44, 0)),
        (Borders(top=100, bottom=28), (512, 640), (0, 100)),
        (Borders(bottom=1), (512, 528), (0, 0)),
    ],
)
def test_a_border_grows_to_a_size_that_can_be_made(
    borders: Borders, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    canvas = extended(Size(512, 512), borders)
    assert (canvas.size, (canvas.left, canvas.top)) == (size, corner)


def test_what_is_too_large_is_scaled_in_proportion() -> None:
    canvas = extended(Size(3000, 2000), Borders(left=1000, right=1000))
    assert canvas.size == (1536, 624)
    assert (canvas.inner, canvas.borders[:2]) == ((922, 614), (307, 307))
