"""Attention of many samples at once in Triton: every sample's text and image rows, and nobody else's.

The work is cut into tiles of queries (`Sequences.tiles`), each with one head; a persistent grid takes them in
order, so programs that run together share keys and values in the L2 cache. Keys come in two spans, text and
image; only the last tile of a span masks. The softmax is the online one of FlashAttention (Dao et al. 2022,
arXiv 2205.14135) in base 2, the scale folded into the exponent.

`one_loop_attention` takes both spans in one loop, which needs fewer registers and can leave the loads to
warps of their own. Until it has won on a GPU it is a rival in kernels/bench that nobody chooses.

Floor: 4 * rows^2 * heads * head_dim FLOP a sample; 232.7 GFLOP at 1024x1024 with 24 heads of 128, 0.29 ms at
the 790 TFLOP/s that an H200 reaches. Memory does not matter: 107 MB, 25 us.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import DTYPES, describe, names
from kernels.devices import takes_descriptors, target
from kernels.rotary import HEAD_DIMS
from kernels.rows import TILE_ROWS, Sequences

LOG2_E = 1.4426950408889634


def attention(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, out: Tensor | None = None) -> Tensor:
    """As `reference.attention`; head_dim is 32, 64 or 128."""
    device = target(q.device)
    tile = tile_for(device.capability, q.dtype, q.shape[-1])
    return _launched(q, k, v, sequences, out, tile, ONE_LOOP=False, SPECIALISED=False, MASKED=True)


def one_loop_attention(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, out: Tensor | None = None, *, specialised: bool
) -> Tensor:
    """As `attention`, where the last tile of a span begins as much earlier as it would reach too far.

    So nothing of another sample is ever read; keys that come twice count once.

    Args:
        specialised: whether some warps load while others compute, on Hopper two groups of 64 queries each.

    Raises `ValueError` beside what `attention` refuses for a device that is neither Hopper nor Blackwell with
    tensor memory, and for a text or an image of fewer rows than a tile of keys.
    """
    device = target(q.device)
    if not (9, 0) <= device.capability < (11, 0) or not takes_descriptors(device, q, k, v):
        raise ValueError(f"q: {describe(q)} on {device}; allowed: sm_90 and sm_100, rows of whole 16 bytes")
    tile = one_loop_tile_for(device.capability, specialised=specialised)
    lengths = [span.rows for pair in sequences.spans for span in pair if span.rows]
    if min(lengths, default=tile.keys) < tile.keys or q.dtype == torch.float32:
        raise ValueError(f"{q.dtype}, spans of {lengths} rows; allowed: 16 bits, at least {tile.keys} rows")
    masked = any(length % tile.keys for length in lengths)
    return _launched(q, k, v, sequences, out, tile, ONE_LOOP=True, SPECIALISED=specialised, MASKED=masked)


def _launched(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sequences: Sequences,
    out: Tensor | None,
    tile: "Tile",
    **constants: bool,
) -> Tensor:
    rows, heads, head_dim = _checked(q, k, v)
    width = heads * head_dim
    out = torch.empty(rows, width, dtype=q.dtype, device=q.device) if out is None else out
    if out.shape != (rows, width) or out.stride(1) != 1 or (out.dtype, out.device) != (q.dtype, q.device):
        raise ValueError(f"out: {describe(out)}; allowed: [{rows}, {width}] as q: {describe(q)}")
    covered = sum(txt.rows + img.rows for txt, img in sequences.spans)
    if covered != rows:
        raise ValueError(f"q: {describe(q)}, but the sequences have {covered} rows")
    device = target(q.device)
    work = len(sequences.tiles) * (TILE_ROWS // tile.queries) * heads
    _attention[(min(work, device.multiprocessors * tile.programs),)](
        q,
        k,
        v,
        out,
        sequences.tiles,
        len(sequences.tiles),
        rows,
        heads,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        out.stride(0),
        head_dim**-0.5 * LOG2_E,
        HEAD_DIM=head_dim,
        PARTS=TILE_ROWS // tile.queries,
        QUERIES=tile.queries,
        KEYS=tile.keys,
        DESCRIPTORS=takes_descriptors(device, q, k, v),
        **constants,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


class Tile(NamedTuple):
    """Rows of queries and of keys, warps, stages of the pipeline, and programs for each multiprocessor."""

    queries: int
    keys: int
    warps: int
    stages: int
    programs: int


def tile_for(capability: tuple[int, int], dtype: torch.dtype, head_dim: int) -> Tile:
    """Return the tile that fits registers and shared memory: `python -m kernels.inspect` shows that it does.

    float32 spills at head_dim 128 whatever the tile; kernels/dispatch.py leaves float32 to torch on a GPU.
    """
    if dtype == torch.float32:
        return Tile(64, 16, 8, 1, 1)
    if head_dim == 128 and capability >= (12, 0):
        return Tile(64, 64, 8, 2, 1)
    if capability >= (10, 0):
        return Tile(128, 32, 8, 2, 1)
    return Tile(128, 64, 8, 2 if head_dim == 128 else 3, 1)


def one_loop_tile_for(capability: tuple[int, int], *, specialised: bool) -> Tile:
    """Return the tile of `one_loop_attention`: of twice the keys that two loops have registers for.

    Where warps are specialised, these are those of one partition; the compiler adds the others.
    """
    if capability >= (10, 0):
        return Tile(128, 64, 8, 2, 1)
    return Tile(128, 128, 4 if specialised else 8, 2, 1)


def _checked(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int]:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if (x.shape, x.dtype, x.device) != (q.shape, q.dtype, q.device) or x.dtype not in DTYPES:
            raise ValueError(
                f"{name}: {describe(x)}; q: {describe(q)}; allowed: alike, one of {names(DTYPES)}"
            )
        if x.dim() != 3 or x.shape[2] not in HEAD_DIMS or x.stride()[1:] != (x.shape[2], 1):
            raise ValueError(
                f"{name}: {describe(x)}; allowed: [rows, heads, head_dim], heads side by side, "
                f"head_dim one of {HEAD_DIMS}"
            )
    rows, heads, head_dim = q.shape
    return rows, heads, head_dim


@triton.jit
def _attention(
    q,
    k,
    v,
    out,
    tiles,
    tile_count,
    rows,
    heads,
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    scale,  # head_dim ** -0.5 * log2(e)
    HEAD_DIM: tl.constexpr,
    PARTS: tl.constexpr,  # of a tile of the table
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    ONE_LOOP: tl.constexpr,
    SPECIALISED: tl.constexpr,
    MASKED: tl.constexpr,
):
    if DESCRIPTORS:
        width = heads * HEAD_DIM
        queries_from = tl.make_tensor_descriptor(q, [rows, width], [q_stride, 1], [QUERIES, HEAD_DIM])
        keys_from = tl.make_tensor_descriptor(k, [rows, width], [k_stride, 1], [KEYS, HEAD_DIM])
        values_from = tl.make_tensor_descriptor(v, [rows, width], [v_stride, 1], [KEYS, HEAD_DIM])
    else:
        queries_from, keys_from, values_from = q, k, v
    part_count = tile_count * PARTS
    for work in range(tl.program_id(0), part_count * heads, tl.num_programs(0)):
        head = work // part_count
        tile = tiles + (work % part_count) // PARTS * 6
        skipped = work % PARTS * QUERIES
        first, count = tl.load(tile) + skipped, tl.load(tile + 1) - skipped
        if PARTS == 1 or count > 0:  # a short tile has no second part
            queries = _load(
                queries_from, first, count, head, q_stride, HEAD_DIM, QUERIES, not DESCRIPTORS, DESCRIPTORS
            )
            if ONE_LOOP:
                attended = _in_one_loop(
                    queries, keys_from, values_from, tile, head, scale, HEAD_DIM, KEYS, SPECIALISED, MASKED
                )
            else:
                attended = _in_two_loops(
                    queries,
                    keys_from,
                    values_from,
                    tile,
                    head,
                    k_stride,
                    v_stride,
                    scale,
                    HEAD_DIM,
                    KEYS,
                    DESCRIPTORS,
                )
            row = tl.arange(0, QUERIES)[:, None]
            place = out + (first + row).to(tl.int64) * out_stride + head * HEAD_DIM
            tl.store(
                place + tl.arange(0, HEAD_DIM)[None, :], attended.to(out.dtype.element_ty), mask=row < count
            )


@triton.jit
def _in_two_loops(
    queries,
    keys_from,
    values_from,
    tile,
    head,
    k_stride,
    v_stride,
    scale,
    HEAD_DIM: tl.constexpr,
    KEYS: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Take the keys of each span: its whole tiles, and one that masks."""
    peak, total, mixed = _nothing(queries)
    for span in tl.static_range(2):
        start, length = tl.load(tile + 2 + 2 * span), tl.load(tile + 3 + 2 * span)
        whole = length // KEYS * KEYS
        for key in range(start, start + whole, KEYS):
            keys = _load(keys_from, key, KEYS, head, k_stride, HEAD_DIM, KEYS, False, DESCRIPTORS)
            values = _load(values_from, key, KEYS, head, v_stride, HEAD_DIM, KEYS, False, DESCRIPTORS)
            scores = _scores(queries, keys)
            peak, total, mixed = _fold(peak, total, mixed, scores, values, scale)
        rest = length - whole
        if rest > 0:
            key = start + whole
            keys = _load(keys_from, key, rest, head, k_stride, HEAD_DIM, KEYS, True, DESCRIPTORS)
            values = _load(values_from, key, rest, head, v_stride, HEAD_DIM, KEYS, True, DESCRIPTORS)
            scores = _scores(queries, keys)
            scores = tl.where(tl.arange(0, KEYS)[None, :] < rest, scores, -float("inf"))
            peak, total, mixed = _fold(peak, total, mixed, scores, values, scale)
    return mixed / total[:, None]


@triton.jit
def _in_one_loop(
    queries,
    keys_from,
    values_from,
    tile,
    head,
    scale,
    HEAD_DIM: tl.constexpr,
    KEYS: tl.constexpr,
    SPECIALISED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take the keys of both spans: warps are specialised only where one loop has all the products."""
    peak, total, mixed = _nothing(queries)
    txt, txt_rows, img, img_rows = tl.load(tile + 2), tl.load(tile + 3), tl.load(tile + 4), tl.load(tile + 5)
    txt_tiles = tl.cdiv(txt_rows, KEYS)
    for number in tl.range(0, txt_tiles + tl.cdiv(img_rows, KEYS), warp_specialize=SPECIALISED):
        is_txt = number < txt_tiles
        start, length = tl.where(is_txt, txt, img), tl.where(is_txt, txt_rows, img_rows)
        fresh = (number - tl.where(is_txt, 0, txt_tiles)) * KEYS
        first = tl.minimum(fresh, length - KEYS)
        keys = keys_from.load([start + first, head * HEAD_DIM])
        values = values_from.load([start + first, head * HEAD_DIM])
        scores = _scores(queries, keys)
        if MASKED:
            scores = tl.where(tl.arange(0, KEYS)[None, :] >= fresh - first, scores, -float("inf"))
        peak, total, mixed = _fold(peak, total, mixed, scores, values, scale)
    return mixed / total[:, None]


@triton.jit
def _nothing(queries):
    """The running softmax of each query before any key: its peak, its sum, and the weighted values."""
    peak = tl.full([queries.shape[0]], -float("inf"), tl.float32)
    return peak, tl.zeros([queries.shape[0]], tl.float32), tl.zeros(queries.shape, tl.float32)


@triton.jit
def _load(
    source,
    first,
    count,
    head,
    stride,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    MASKED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
):
    """Rows `first` to `first + count` of a head, [ROWS, HEAD_DIM]; what lies beyond is zero if MASKED.

    The rows beyond are another sample's: of keys and values nothing may get in, not even an infinity times
    zero. Queries need the mask to stay inside of memory, which a descriptor sees to.
    """
    row = tl.arange(0, ROWS)[:, None]
    if DESCRIPTORS:
        tile = source.load([first, head * HEAD_DIM])
        if MASKED:
            tile = tl.where(row < count, tile, 0.0)
    else:
        place = source + (first + row).to(tl.int64) * stride + head * HEAD_DIM
        mask = (row < count) if MASKED else None
        tile = tl.load(place + tl.arange(0, HEAD_DIM)[None, :], mask=mask, other=0.0 if MASKED else None)
    return tile


@triton.jit
def _scores(queries, keys):
    return tl.dot(queries, tl.trans(keys), input_precision="tf32x3")


@triton.jit
def _fold(peak, total, mixed, scores, values, scale):
    """Take a tile of keys into the running softmax: peak and sum of each row, and the weighted values."""
    higher = tl.maximum(peak, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - higher[:, None])
    fade = tl.exp2(peak - higher)
    total = total * fade + tl.sum(weights, axis=1)
    mixed = tl.dot(weights.to(values.dtype), values, mixed * fade[:, None], input_precision="tf32x3")
    return higher, total, mixed
