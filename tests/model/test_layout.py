"""Rows and their owners: joining, splitting, positions."""

import torch

from model.config import TransformerConfig
from model.layout import Layout, Numerics, Shape, rope_table

CONFIG = TransformerConfig()
SHAPES = (Shape(3, 2, 4), Shape(1, 3, 3), Shape(5, 1, 2))


def layout(numerics: Numerics = Numerics.EXACT, shapes: tuple[Shape, ...] = SHAPES) -> Layout:
    return Layout.build(shapes, config=CONFIG, numerics=numerics, device=torch.device("cpu"))


def test_joint_rows_put_the_text_of_each_sample_before_its_image() -> None:
    txt = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2])
    img = torch.tensor([10] * 8 + [11] * 9 + [12] * 2)
    joint = layout().join(txt, img)
    assert joint.tolist() == [0] * 3 + [10] * 8 + [1] + [11] * 9 + [2] * 5 + [12] * 2


def test_split_undoes_join() -> None:
    for shapes in (SHAPES, SHAPES[:1]):
        rows = layout(shapes=shapes)
        txt, img = torch.randn(sum(rows.txt.lengths), 2), torch.randn(sum(rows.img.lengths), 2)
        txt_again, img_again = rows.split(rows.join(txt, img))
        assert torch.equal(txt_again, txt)
        assert torch.equal(img_again, img)


def test_exact_numerics_give_every_sample_its_own_products() -> None:
    assert layout(Numerics.EXACT).joint.products == (11, 10, 7)
    assert layout(Numerics.FAST).joint.products == (28,)


def test_each_streams_rotations_are_those_of_its_rows_in_the_joint_order() -> None:
    rows = layout()
    txt_cos, img_cos = rows.split(rows.joint.cos)
    assert torch.equal(txt_cos, rows.txt.cos)
    assert torch.equal(img_cos, rows.img.cos)


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
