"""Attention of many samples in Triton against float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder

from kernels import attention as ours
from kernels.devices import Target, simulating
from kernels.rows import Sequences, Span
from tests.kernels.worlds import (
    DEVICE,
    assert_near,
    assert_untouched_around,
    columns_of,
    dtypes,
    poisoned,
    random,
    sequences,
)

TXT, IMG = (33, 1, 64), (40, 131, 64)
simulated = pytest.mark.skipif(
    DEVICE.type == "cuda", reason="another architecture is simulated in the interpreter"
)


def packed(
    rows: int, heads: int, head_dim: int, dtype: torch.dtype, *, scale: float = 1.0
) -> tuple[Tensor, ...]:
    """q, k and v as the projection leaves them: side by side, among columns that are NaN."""
    qkv = columns_of(random(rows, 3 * heads * head_dim, seed=0, dtype=dtype, scale=scale))
    return qkv.view(rows, 3, heads, head_dim).unbind(1)


def exact_attention(q: Tensor, k: Tensor, v: Tensor, layout: Sequences) -> Tensor:
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for pair in layout.spans:
        own = torch.cat([torch.arange(span.start, span.stop) for span in pair])
        scores = torch.einsum("ihd,jhd->hij", q[own].double(), k[own].double()) / q.shape[2] ** 0.5
        out[own] = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v[own].double())
    return out.flatten(1)


def assert_attention_near(actual: Tensor, exact: Tensor, dtype: torch.dtype, *, score: float) -> None:
    """The weights are rounded to the dtype before they meet the values: `eps / 2` of the largest value.

    In float32 an error of the scores, `eps` of the largest, is one of the weights.
    """
    if dtype == torch.float32:
        assert_near(actual, exact, terms=int(64 * max(1.0, score) ** 2), size=4.0)
    else:
        terms = int((0.5 * torch.finfo(dtype).eps / torch.finfo(torch.float32).eps) ** 2)
        assert_near(actual, exact, terms=terms, size=2.0)


@dtypes
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 32), (1, 64), (1, 128)])
def test_samples_of_any_length_agree(dtype: torch.dtype, heads: int, head_dim: int) -> None:
    layout = sequences(TXT, IMG)
    q, k, v = packed(sum(TXT + IMG), heads, head_dim, dtype)
    out = poisoned(len(q), heads * head_dim, dtype)
    assert ours.attention(q, k, v, layout, out) is out
    assert_attention_near(out, exact_attention(q, k, v, layout), dtype, score=4.0)
    assert_untouched_around(out)


@dtypes
def test_large_scores_do_not_overflow(dtype: torch.dtype) -> None:
    layout = sequences((3,), (70,))
    q, k, v = packed(73, 1, 32, dtype, scale=10.0)
    v.mul_(0.1)
    exact = exact_attention(q, k, v, layout)
    score = float((q[:, 0].double() @ k[:, 0].double().T).abs().max()) / 32**0.5
    assert score > 100, "more than exp can take in float32"
    assert_attention_near(ours.attention(q, k, v, layout), exact, dtype, score=score)


def spoil(q: Tensor, k: Tensor, v: Tensor, *spans: range) -> None:
    """Change all of these rows, nearly all to what is not finite.

    Each tile of keys, 16 at least, keeps a finite one: of NaN alone numpy's maximum warns, and a filter for
    warnings belongs to the process, so that any thread that leaves `warnings.catch_warnings` can undo it.
    """
    for span in spans:
        for each in (q, k, v):
            each[span] *= -1
        infinite = [row for row in span[:-1] if (row - span.start) % 16 != 15]
        q[infinite, :, 0] = k[infinite] = v[infinite] = torch.inf


def test_nothing_of_a_neighbour_gets_in() -> None:
    """Not even where its values are not finite, and a tile of keys reaches into its rows."""
    layout = sequences((5, 3), (20, 30))
    q, k, v = packed(58, 2, 32, torch.float32)
    alone = ours.attention(q, k, v, layout)
    mine = [*range(5), *range(8, 28)]
    spoil(q, k, v, range(5, 8), range(28, 58))
    with np.errstate(invalid="ignore"):  # in the neighbour's own rows
        beside = ours.attention(q, k, v, layout)
    assert torch.equal(beside[mine], alone[mine])
    assert alone[mine].isfinite().all()


def test_a_sample_is_the_same_in_any_company() -> None:
    q, k, v = packed(60, 2, 32, torch.float32)
    together = ours.attention(q, k, v, sequences((10, 10), (25, 15)))
    first = [*range(10), *range(20, 45)]
    alone = ours.attention(*(each[first] for each in (q, k, v)), sequences((10,), (25,)))
    assert torch.equal(together[first], alone)


@simulated
@pytest.mark.parametrize("capability", [(8, 0), (9, 0), (10, 0), (12, 0)], ids=str)
def test_every_architecture_agrees_and_multiplies_only_for_queries(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On sm_120 a program takes 64 of a tile's 128 rows: a tile of 40 rows has no second half."""
    products = 0
    create_dot = InterpreterBuilder.create_dot

    def counted(*arguments: Any) -> Any:
        nonlocal products
        products += 1
        return create_dot(*arguments)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", counted)
    layout = sequences(TXT, IMG)
    q, k, v = packed(sum(TXT + IMG), 1, 128, torch.float16)
    tile = ours.tile_for(capability, torch.float16, 128)
    with simulating(Target(capability, 3)):
        out = ours.attention(q, k, v, layout)
    assert_attention_near(out, exact_attention(q, k, v, layout), torch.float16, score=4.0)
    assert products == sum(2 * parts(pair, tile.queries) * parts(pair, tile.keys) for pair in layout.spans), (
        "scores and weighted values, for each part of the queries with each of the keys"
    )


def parts(spans: tuple[Span, ...], rows: int) -> int:
    """Of at most `rows` rows each."""
    return sum(-(-span.rows // rows) for span in spans)


@simulated
@pytest.mark.parametrize("specialised", [False, True], ids=["plain", "specialised"])
@pytest.mark.parametrize(
    ("txt", "img"), [((130, 128), (200, 131)), ((256,), (128,)), ((0, 191), (129, 128))], ids=str
)
def test_one_loop_over_both_spans_agrees(
    txt: tuple[int, ...], img: tuple[int, ...], specialised: bool
) -> None:
    layout = sequences(txt, img)
    q, k, v = packed(sum(txt + img), 2, 64, torch.float16)
    out = poisoned(len(q), 128, torch.float16)
    with simulating(Target((9, 0), 3)):
        assert ours.one_loop_attention(q, k, v, layout, out, specialised=specialised) is out
    assert_attention_near(out, exact_attention(q, k, v, layout), torch.float16, score=4.0)
    assert_untouched_around(out)


@simulated
def test_one_loop_reads_nothing_of_a_neighbour_and_gives_the_same_bits_beside_it() -> None:
    """Alone all its tiles are whole and nothing masks; the neighbour makes them mask."""
    q, k, v = packed(128 + 130 + 256 + 140, 1, 64, torch.float16)
    mine = [*range(128), *range(258, 514)]
    spoil(q, k, v, range(128, 258), range(514, len(q)))
    with simulating(Target((9, 0), 3)), np.errstate(invalid="ignore"):  # in the neighbour's own rows
        beside = ours.one_loop_attention(q, k, v, sequences((128, 130), (256, 140)), specialised=True)
        own = (torch.cat([each[:128], each[258:514]]) for each in (q, k, v))
        alone = ours.one_loop_attention(*own, sequences((128,), (256,)), specialised=True)
    assert torch.equal(beside[mine], alone)
    assert alone.isfinite().all()


@simulated
def test_one_loop_refuses_what_it_cannot_read() -> None:
    q, k, v = packed(256 + 100, 1, 64, torch.float16)
    for capability, operands, layout, message in (
        ((8, 0), (q, k, v), sequences((156,), (200,)), r"capability=\(8, 0\).*allowed: sm_90 and sm_100"),
        ((12, 0), (q, k, v), sequences((156,), (200,)), r"capability=\(12, 0\).*allowed: sm_90"),
        ((9, 0), (q, k, v), sequences((100,), (256,)), r"spans of \[100, 256\] rows; .*at least 128 rows"),
        ((9, 0), (q.float(), k.float(), v.float()), sequences((156,), (200,)), "float32.*allowed: 16 bits"),
    ):
        with simulating(Target(capability, 3)), pytest.raises(ValueError, match=message):
            ours.one_loop_attention(*operands, layout, specialised=True)


def test_a_sample_without_text_attends_to_its_image() -> None:
    layout = sequences((0, 4), (9, 9))
    q, k, v = packed(22, 1, 32, torch.float32)
    out = ours.attention(q, k, v, layout)
    assert_attention_near(out, exact_attention(q, k, v, layout), torch.float32, score=4.0)


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 70)), min_size=1, max_size=3))
def test_any_lengths_agree(lengths: list[tuple[int, int]]) -> None:
    layout = sequences(tuple(txt for txt, _ in lengths), tuple(img for _, img in lengths))
    q, k, v = packed(sum(map(sum, lengths)), 1, 32, torch.float32)
    out = ours.attention(q, k, v, layout)
    assert_attention_near(out, exact_attention(q, k, v, layout), torch.float32, score=4.0)


def test_what_does_not_fit_is_refused() -> None:
    q, k, v = packed(8, 2, 32, torch.float32)
    layout = sequences((3,), (5,))
    for arguments, message in (
        ((q, k.half(), v, layout), r"k: .*float16.*q: .*float32.*allowed: alike"),
        ((q, k[:7], v, layout), r"k: shape \[7, 2, 32\]"),
        ((q[..., :16], k[..., :16], v[..., :16], layout), r"head_dim one of \(32, 64, 128\)"),
        ((q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), layout), "heads side by side"),
        ((q.double(), k.double(), v.double(), layout), "allowed: alike, one of bfloat16"),
        ((q, k, v, sequences((3,), (4,))), r"shape \[8, 2, 32\].*the sequences have 7 rows"),
        ((q, k, v, layout, q.new_empty(8, 63)), r"out: shape \[8, 63\].*allowed: \[8, 64\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.attention(*arguments)
