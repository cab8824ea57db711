"""Sizes as dialects name them: every one can be made, and has the shape that its name says."""

from typing import get_args

import pytest

from server.generation import MAX_SIDE, MIN_SIDE, SIDE_MULTIPLE
from server.http.predictions import RATIOS, AspectRatio
from server.http.sizes import ASPECT_RATIOS, size_of


@pytest.mark.parametrize("megapixels", ["1", "0.25"])
@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
def test_sizes_can_be_made_and_have_their_ratio(ratio: str, megapixels: str) -> None:
    width, height = size_of(ratio, megapixels)
    for side in (width, height):
        assert side % SIDE_MULTIPLE == 0
        assert MIN_SIDE <= side <= MAX_SIDE
    wanted, over = (int(each) for each in ratio.split(":"))
    # Sides are rounded to 32 pixels, half of which is at most 2.5 % of the shortest one.
    assert width / height == pytest.approx(wanted / over, rel=0.05)
    assert 0.9 < width * height / (float(megapixels) * 1024**2) <= 1


def test_what_is_allowed_is_what_is_listed() -> None:
    assert get_args(AspectRatio) == tuple(ASPECT_RATIOS)
    assert RATIOS.replace(" or ", ", ").split(", ") == list(ASPECT_RATIOS)
