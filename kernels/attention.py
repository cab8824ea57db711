"""Attention of many samples at once in Triton: every sample's text and image rows, and nobody else's.

The work is cut into tiles of queries (`Sequences.tiles`), each with one head; a persistent grid takes them in
order, so programs that run together share keys and values in the L2 cache. Keys come in two spans, text and
image; only the last tile of a span masks. The softmax is the online one of FlashAttention (Dao et al. 2022,
arXiv 2205.14135) in base 2, the scale folded into the exponent.

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
    rows, heads, head_dim = _checked(q, k, v)
    width = heads * head_dim
    out = torch.empty(rows, width, dtype=q.dtype, device=q.device) if out is None else out
    if out.shape != (rows, width) or out.stride(1) != 1 or (out.dtype, out.device) != (q.dtype, q.device):
        raise ValueError(f"out: {describe(out)}; allowed: [{rows}, {width}] as q: {describe(q)}")
    covered = sum(txt.rows + img.rows for txt, img in sequences.spans)
    if covered != rows:
        raise ValueError(f"q: {describe(q)}, but the sequences have {covered} rows")
    device = target(q.device)
    tile = tile_for(device.capability, q.dtype, head_dim)
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
            queries = _load(queries_from, first, count, head, q_stride, HEAD_DIM, QUERIES, True, DESCRIPTORS)
            peak = tl.full([QUERIES], -float("inf"), tl.float32)
            total = tl.zeros([QUERIES], tl.float32)
            mixed = tl.zeros([QUERIES, HEAD_DIM], tl.float32)
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
            row = tl.arange(0, QUERIES)[:, None]
            place = out + (first + row).to(tl.int64) * out_stride + head * HEAD_DIM
            mixed = mixed / total[:, None]
            tl.store(
                place + tl.arange(0, HEAD_DIM)[None, :], mixed.to(out.dtype.element_ty), mask=row < count
            )


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

    The rows beyond are another sample's: nothing of them may get in, not even an infinity times zero.
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
