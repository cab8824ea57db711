"""Spans, owners, and the tiles of the attention kernel."""

import pytest
import torch

from kernels.rows import Owners, Sequences, Span, spans

CPU = torch.device("cpu")


def test_spans_lie_one_after_another() -> None:
    assert spans((3, 0, 2), start=10) == (Span(10, 3), Span(13, 0), Span(13, 2))
    assert spans(()) == ()


def test_owners_have_an_entry_for_every_row() -> None:
    owners = Owners.build([Span(2, 3), Span(0, 2)], CPU)
    assert owners.by_row.tolist() == [1, 1, 0, 0, 0]
    assert owners.by_row.dtype == torch.int32


@pytest.mark.parametrize("owned", [[Span(0, 2), Span(1, 2)], [Span(0, 1), Span(2, 2)]])
def test_a_row_without_an_owner_or_with_two_is_an_error(owned: list[Span]) -> None:
    with pytest.raises(ValueError, match="do not cover"):
        Owners.build(owned, CPU)


def test_tiles_cover_every_query_once_and_know_their_keys() -> None:
    sequences = [(Span(0, 3), Span(10, 5)), (Span(3, 7), Span(15, 9))]
    tiles = Sequences.build(sequences, CPU, tile_rows=4).tiles.tolist()
    covered = sorted(row for start, rows, *_ in tiles for row in range(start, start + rows))
    assert covered == [*range(10), *range(10, 24)]
    for start, rows, *keys in tiles:
        (own,) = [pair for pair in sequences if any(s.start <= start < s.stop for s in pair)]
        assert keys == [*own[0], *own[1]]
        assert 0 < rows <= 4
    assert tiles[0][2:] == [3, 7, 15, 9], "the longest sequence first"
