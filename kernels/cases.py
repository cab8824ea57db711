"""Every operation at the shapes of a model: what to check and to time, and its floor.

Operands lie as model/layers.py has them: q, k, v and the MLP's input are columns of one wide projection, and
what becomes of them goes into columns of another buffer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import reference
from kernels.float8 import FLOAT8, Quantized, multiplies_float8
from kernels.rows import Owners, Sequences, Span, spans
from kernels.updates import KERNEL_RANKS, LowRank, Update, Updates

TXT_ROWS = 256
Operation = Callable[..., Any]  # one implementation: its arguments are those of the case


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Of the model whose shapes are taken; `channels` and `norm_groups` are the autoencoder's."""

    heads: int = 24
    head_dim: int = 128
    text_width: int = 4096  # of T5
    channels: tuple[int, ...] = (128, 256, 512)
    norm_groups: int = 32

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one shape, for any implementation of it.

    `result` returns what an implementation computes, from copies of what it changes. `timed` is its bare
    call, as often as one likes, and changes nothing that `result` reads; `bytes_moved` is what that must read
    and write at least, `flops` what it must compute.
    """

    op: str
    shape: str
    result: Callable[[Operation], Tensor]
    timed: Callable[[Operation], object]
    bytes_moved: int
    tolerance: float  # of the norm, between right implementations
    flops: int = 0

    @property
    def reference(self) -> Operation:
        operation: Operation = getattr(reference, self.op)
        return operation

    def error(self, implementation: Operation) -> float:
        """Return how far an implementation is from the reference, of the reference's norm."""
        return relative_error(self.result(implementation), self.result(self.reference))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of `expected`."""
    away = (actual.double() - expected.double()).norm()
    return float(away / expected.double().norm().clamp_min(1e-30))


def tolerance(dtype: torch.dtype, *, quantized: bool = False) -> float:
    """Return the relative error that two right implementations of an operation may have.

    Both together round to `dtype` eight times at most, in `gated_residual_norm`, each time by half an `eps`
    at most and independently: `sqrt(8) * eps / 2`. And they sum up to 16384 products in float32, where tensor
    cores cut instead of rounding (Fasi, Higham, Mikaitis & Pranesh 2021, PeerJ CS 7:e330): half an `eps` on
    average for every 8 terms, three times where three products make a float32 one. The first terms suffer
    all of these, the last none: half of them.

    Quantised afterwards, a value that lies so close to the border between two of e4m3 goes either way, by an
    `eps` of e4m3. The share of such values is the error over that `eps`: the norm is that of their root.
    """
    rounded = 8**0.5 * torch.finfo(dtype).eps / 2
    cut = 3 * 16384 / 8 / 2 * torch.finfo(torch.float32).eps / 2
    error = rounded + cut
    return (error * torch.finfo(FLOAT8).eps) ** 0.5 if quantized else error


def cases(
    sides: Sequence[int], *, dtype: torch.dtype, device: torch.device, dimensions: Dimensions
) -> Iterator[Case]:
    """Yield every operation for one step of square pictures of these `sides` in pixels."""
    world = _World(sides, dtype, device, dimensions)
    yield _text_norm(world)
    yield from _norms(world)
    if world.quantizes:
        yield from _quantized(world)
    yield from _projected(world)
    yield from _products(world)
    yield _added(world)
    for rank in KERNEL_RANKS:
        yield _updated(world, rank)
    yield from _ends(world)
    yield from _group_norms(world)


class _World:
    """Random tensors of a step's shapes."""

    def __init__(
        self, sides: Sequence[int], dtype: torch.dtype, device: torch.device, dimensions: Dimensions
    ) -> None:
        lengths = [(side // 16) ** 2 for side in sides]
        txt = spans([TXT_ROWS] * len(sides))
        img = spans(lengths, start=TXT_ROWS * len(sides))
        self.sides, self.dtype, self.device, self.dimensions = tuple(sides), dtype, device, dimensions
        self.quantizes = multiplies_float8(device) and (device.type == "cpu" or dtype == torch.bfloat16)
        self.rows = TXT_ROWS * len(sides) + sum(lengths)
        self.owners = Owners.build(img + txt, device)
        self.img_owners = Owners.build(spans(lengths), device)
        self.sequences = Sequences.build(list(zip(txt, img, strict=True)), device)
        if len(set(sides)) == 1:
            self.shape = f"{sides[0]}x{sides[0]} batch {len(sides)}"
        else:
            self.shape = " and ".join(f"{side}x{side}" for side in sides)

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype or self.dtype)

    def case(
        self,
        op: str,
        call: Callable[[Operation], Tensor],
        *,
        shape: str | None = None,
        timed: Callable[[Operation], object] | None = None,
        bytes_moved: int,
        flops: int = 0,
        quantized: bool = False,
    ) -> Case:
        """Build a case; `timed` is given where `call` does more than the operation itself."""
        allowed = tolerance(self.dtype, quantized=quantized)
        return Case(op, shape or self.shape, call, timed or call, bytes_moved, allowed, flops)


def _text_norm(world: _World) -> Case:
    rows, width = len(world.sides) * TXT_ROWS, world.dimensions.text_width
    states, scale = world.random(rows, width), world.random(width)
    return world.case(
        "rms_norm",
        lambda op: op(states, scale),
        shape=f"{rows} rows of {width}",
        bytes_moved=2 * states.nbytes,
    )


def _norms(world: _World) -> Iterator[Case]:
    width, owners = world.dimensions.width, world.owners
    x, y = world.random(world.rows, width), world.random(world.rows, width)
    shift, scale, gate = (0.1 * world.random(len(owners.spans), width) for _ in range(3))
    yield world.case("modulated_norm", lambda op: op(x, shift, scale, owners), bytes_moved=2 * x.nbytes)

    def added(op: Operation) -> Tensor:
        summed = x.clone()
        return torch.cat([summed, op(summed, gate, y, shift, scale, owners)])

    shut = torch.zeros_like(gate)  # so that x stays what it is however often this runs
    yield world.case(
        "gated_residual_norm",
        added,
        timed=lambda op: op(x, shut, y, shift, scale, owners),
        bytes_moved=4 * x.nbytes,
    )


def _quantized(world: _World) -> Iterator[Case]:
    """What writes e4m3, and the product that reads it."""
    rows, width, owners = world.rows, world.dimensions.width, world.owners
    x, hidden = world.random(rows, width), world.random(rows, 4 * width)
    shift, scale = (0.1 * world.random(len(owners.spans), width) for _ in range(2))
    yield world.case(
        "modulated_norm",
        lambda op: _plain(op(x, shift, scale, owners, quantized=True)),
        timed=lambda op: op(x, shift, scale, owners, quantized=True),
        shape=f"{world.shape}, quantised",
        bytes_moved=x.nbytes + x.numel(),
        quantized=True,
    )
    yield world.case(
        "quantize",
        lambda op: _plain(op(x)),
        timed=lambda op: op(x),
        bytes_moved=x.nbytes + x.numel(),
        quantized=True,
    )
    yield world.case(
        "quantized_gelu",
        lambda op: _plain(op(hidden, (rows,), x)),
        timed=lambda op: op(hidden, (rows,), x),
        bytes_moved=5 * (x.nbytes + x.numel()),
        quantized=True,
    )
    both = reference.quantized_gelu(hidden, (rows,), x)
    weight = reference.quantize((5 * width) ** -0.5 * world.random(width, 5 * width))
    bias = world.random(width)
    yield world.case(
        "quantized_linear",
        lambda op: op(both, weight, bias, (rows,), None),
        shape=f"{world.shape}, {5 * width} to {width}",
        bytes_moved=both.values.numel() + weight.values.numel() + x.nbytes,
        flops=2 * rows * 5 * width * width,
    )


def _plain(rows: Quantized) -> Tensor:
    return rows.dequantized(torch.float32)


def _projected(world: _World) -> Iterator[Case]:
    """What stands between the two linears of a single stream block."""
    rows, width, head_dim = world.rows, world.dimensions.width, world.dimensions.head_dim
    projected, both = world.random(rows, 7 * width), world.random(rows, 5 * width)
    qkv, hidden = projected.tensor_split([3 * width], dim=1)
    q, k, v = qkv.view(rows, 3, -1, head_dim).unbind(1)
    weight, angles = world.random(head_dim), world.random(rows, head_dim // 2, dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()
    row_bytes = rows * width * qkv.element_size()

    def beside(op: Operation, *operands: object, columns: slice) -> Tensor:
        out = torch.zeros_like(both)
        op(*operands, out[:, columns])
        return out

    def turned(op: Operation) -> Tensor:
        own = projected.clone()[:, : 3 * width]
        op(own, weight, weight, cos, sin)
        return own

    attended, activated = slice(0, width), slice(width, 5 * width)
    lengths = [txt.rows + img.rows for txt, img in world.sequences.spans]
    yield world.case(
        "attention",
        lambda op: beside(op, q, k, v, world.sequences, columns=attended),
        timed=lambda op: op(q, k, v, world.sequences, both[:, attended]),
        bytes_moved=4 * row_bytes,
        flops=4 * sum(length**2 for length in lengths) * width,
    )
    yield world.case(
        "gelu_tanh",
        lambda op: beside(op, hidden, (rows,), columns=activated),
        timed=lambda op: op(hidden, (rows,), both[:, activated]),
        bytes_moved=8 * row_bytes,
    )
    spare = projected.clone()[:, : 3 * width]  # normed again and again it stays bounded
    yield world.case(
        "qk_norm_rope",
        turned,
        timed=lambda op: op(spare, weight, weight, cos, sin),
        bytes_moved=4 * row_bytes + 2 * angles.nbytes,
    )


def _products(world: _World) -> Iterator[Case]:
    rows, width = world.rows, world.dimensions.width
    for op, depth, columns in (
        ("linear", width, 4 * width),
        ("linear", 5 * width, width),
        ("linear_gelu", width, 4 * width),
    ):
        x, weight = world.random(rows, depth), depth**-0.5 * world.random(columns, depth)
        yield world.case(
            op,
            partial(_product, x, weight, world.random(columns)),
            shape=f"{world.shape}, {depth} to {columns}",
            bytes_moved=(rows * depth + depth * columns + rows * columns) * x.element_size(),
            flops=2 * rows * depth * columns,
        )


def _added(world: _World) -> Case:
    rows, width, owners = world.rows, world.dimensions.width, world.owners
    x, hidden = world.random(rows, width), world.random(rows, 5 * width)
    weight, bias = (5 * width) ** -0.5 * world.random(width, 5 * width), world.random(width)
    gate = 0.1 * world.random(len(owners.spans), width)

    def added(op: Operation) -> Tensor:
        summed = x.clone()
        op(summed, gate, owners.by_row, hidden, weight, bias, (rows,))
        return summed

    shut = torch.zeros_like(gate)  # so that x stays what it is however often this runs
    return world.case(
        "linear_residual",
        added,
        timed=lambda op: op(x, shut, owners.by_row, hidden, weight, bias, (rows,)),
        shape=f"{world.shape}, {5 * width} to {width}",
        bytes_moved=2 * x.nbytes + hidden.nbytes + weight.nbytes,
        flops=2 * rows * 5 * width * width,
    )


def _updated(world: _World, rank: int) -> Case:
    """Of q, k and v of every picture by an adapter of its own, and of some of them by another one."""
    rows, width = world.rows, world.dimensions.width
    x, projected = world.random(rows, width), world.random(rows, 3 * width)

    def change(outputs: Span, scale: float) -> LowRank:
        down, up = world.random(rank, width), world.random(outputs.rows, rank)
        return LowRank(width**-0.5 * down, rank**-0.5 * up, outputs, scale)

    each = []
    for spans_of_one in world.sequences.spans:
        changes = change(Span(0, 3 * width), 0.5), change(Span(width + 8, width), -1.0)
        each += [Update(span, own) for span in spans_of_one for own in changes]
    updates = Updates.build(each, world.device)

    def added(op: Operation) -> Tensor:
        summed = projected.clone()
        op(x, updates, summed)
        return summed

    spare = projected.clone()
    return world.case(
        "low_rank_add",
        added,
        timed=lambda op: op(x, updates, spare),
        shape=f"{world.shape}, rank {rank}",
        bytes_moved=x.nbytes + 2 * projected.nbytes,
        flops=2 * rows * rank * (2 + 3 + 1) * width,
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor, op: Operation) -> Tensor:
    product: Tensor = op(x, weight, bias, (len(x),), None)
    return product


def _ends(world: _World) -> Iterator[Case]:
    side = world.sides[0]
    latents = world.random(sum(span.rows for span in world.img_owners.spans), 64, dtype=torch.float32)
    velocity, deltas = world.random(*latents.shape), world.random(len(world.sides), dtype=torch.float32)
    yield world.case(
        "euler_step",
        lambda op: op(latents, velocity, deltas, world.img_owners),
        bytes_moved=2 * latents.nbytes + velocity.nbytes,
    )
    image = world.random(1, 3, side, side).to(memory_format=torch.channels_last)[0]
    yield world.case(
        "to_pixels",
        lambda op: op(image),
        shape=f"{side}x{side}",
        bytes_moved=image.numel() * (image.element_size() + 1),
    )


def _group_norms(world: _World) -> Iterator[Case]:
    """Of one picture, at each level of the autoencoder: twice the channels, half the side.

    Its encoder and its decoder have them with SiLU, and at the deepest level, before the attention, without.
    """
    levels = list(enumerate(dict.fromkeys(world.dimensions.channels)))
    for (level, channels), silu in (*((each, True) for each in levels), (levels[-1], False)):
        side = world.sides[0] >> level
        x = world.random(1, channels, side, side).to(memory_format=torch.channels_last)
        weight, bias = world.random(channels), world.random(channels)
        yield world.case(
            "group_norm_silu",
            partial(_normed, x, world.dimensions.norm_groups, weight, bias, silu),
            shape=f"{side}x{side}, {channels} channels{'' if silu else ', norm only'}",
            bytes_moved=3 * x.nbytes,
        )


def _normed(x: Tensor, groups: int, weight: Tensor, bias: Tensor, silu: bool, op: Operation) -> Tensor:
    normed: Tensor = op(x, groups, weight, bias, 1e-6, silu=silu)
    return normed
