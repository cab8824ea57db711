"""Where the rows of a step lie, whose they are, and their positions."""

import torch

from kernels.rows import Span
from model.config import TransformerConfig
from model.layout import Layout, Numerics, Shape, rope_table

CONFIG = TransformerConfig()
SHAPES = (Shape(3, 2, 4), Shape(1, 3, 3), Shape(5, 1, 2))


def layout(numerics: Numerics = Numerics.EXACT, shapes: tuple[Shape, ...] = SHAPES) -> Layout:
    return Layout.build(shapes, config=CONFIG, numerics=numerics, device=torch.device("cpu"))


def test_the_text_rows_of_all_samples_come_before_their_image_rows() -> None:
    rows = layout()
    assert (rows.txt.span, rows.img.span, rows.joint.span) == (Span(0, 9), Span(9, 19), Span(0, 28))
    assert rows.img_lengths == [8, 9, 2]


def test_each_sample_attends_to_its_own_text_and_image() -> None:
    assert layout().sequences.spans == (
        (Span(0, 3), Span(9, 8)),
        (Span(3, 1), Span(17, 9)),
        (Span(4, 5), Span(26, 2)),
    )


def test_the_rows_of_a_sample_are_found_in_every_stream() -> None:
    rows = layout()
    assert rows.own_rows(1, rows.txt) == [Span(3, 1)]
    assert rows.own_rows(1, rows.img) == [Span(8, 9)]
    assert rows.own_rows(1, rows.joint) == [Span(3, 1), Span(17, 9)]


def test_image_rows_look_up_the_first_vectors_and_text_rows_the_others() -> None:
    expected = [3] * 3 + [4] * 1 + [5] * 5 + [0] * 8 + [1] * 9 + [2] * 2
    assert layout().owners.by_row.tolist() == expected


def test_exact_numerics_give_every_sample_its_own_products() -> None:
    assert layout(Numerics.EXACT).joint.products == (3, 1, 5, 8, 9, 2)
    assert layout(Numerics.EXACT).img.products == (8, 9, 2)
    assert layout(Numerics.FAST).joint.products == (28,)


def test_each_streams_rotations_are_those_of_its_rows() -> None:
    rows = layout()
    for stream in (rows.txt, rows.img):
        assert torch.equal(stream.span.of(rows.joint.cos), stream.cos)
    second = rope_table(SHAPES[1], CONFIG)[1:].sin().float()
    assert torch.equal(rows.img.sin[8:17], second)


def test_text_rows_are_not_rotated() -> None:
    table = rope_table(Shape(4, 2, 2), CONFIG)
    assert not table[:4].any()


def test_rope_frequencies_are_the_published_ones() -> None:
    """Row 1, column 1 has the frequencies themselves as angles: 8 zeros, then 28 per axis."""
    table = rope_table(Shape(0, 2, 2), CONFIG)
    assert table.shape == (4, 64)
    last = table[3]
    expected = torch.tensor([1, 0.7196856730, 0.5179474679, 0.3727593720], dtype=torch.float64)
    assert not last[:8].any()
    for start in (8, 36):
        torch.testing.assert_close(last[start : start + 4], expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(last[start + 27].item(), 1.3894954944e-4, rtol=1e-9, atol=0)


def test_positions_run_row_by_row() -> None:
    table = rope_table(Shape(1, 2, 3), CONFIG)[1:]
    assert table[:, 8].tolist() == [0, 0, 0, 1, 1, 1]
    assert table[:, 36].tolist() == [0, 1, 2, 0, 1, 2]
