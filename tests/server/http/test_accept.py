"""What an Accept header asks for, in the order of its weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.http.accept import accepted_types


@pytest.mark.parametrize(
    ("header", "types"),
    [
        ("", []),
        ("image/png", ["image/png"]),
        (" Image/PNG ;q=1 ", ["image/png"]),
        ("a/a, b/b, c/c", ["a/a", "b/b", "c/c"]),
        ("a/a;q=0.5, b/b;q=0.9, c/c;q=0.9", ["b/b", "c/c", "a/a"]),
        ("a/a;level=1;q=0.1, b/b", ["b/b", "a/a"]),
        ("a/a;q=0, b/b;q=0.000", []),
        ("a/a;q=, b/b;q=x, c/c;q=nan, d/d;q=inf, e/e;q=-1", []),
        (",;,", []),
    ],
)
def test_the_most_wanted_comes_first(header: str, types: list[str]) -> None:
    assert accepted_types(header) == types


@given(st.text())
def test_any_header_is_understood_somehow(header: str) -> None:
    assert all(accepted_types(header))
