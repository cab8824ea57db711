"""Every operation at the shapes of a model: what to check and to time, its rivals, and its floor."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import reference
from kernels.ops import GatedResidualNorm, Ops, QkNormRope
from kernels.rows import Owners, Sequences, spans

TXT_ROWS = 256
Call = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Dimensions:
    """Of the model whose shapes are timed."""

    heads: int = 24
    head_dim: int = 128
    text_width: int = 4096  # of T5
    channels: int = 128  # of the autoencoder at full size

    @property
    def width(self) -> int:
        return self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Case:
    """One operation at one shape, ours and the reference's; `rivals` compute the same.

    `bytes_moved` is what must be read and written at least, `flops` what must be computed; the floor is
    whichever takes longer.
    """

    op: str
    shape: str
    ours: Call
    reference: Call
    bytes_moved: int
    flops: int = 0
    rivals: Mapping[str, Call] = field(default_factory=dict)

    def error(self) -> float:
        """Return how far ours is from the reference, of the reference's norm."""
        return relative_error(self.ours(), self.reference())


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference over the norm of `expected`."""
    away = (actual.double() - expected.double()).norm()
    return float(away / expected.double().norm().clamp_min(1e-30))


def cases(
    ops: Ops, *, side: int, batch: int, dtype: torch.dtype, device: torch.device, dimensions: Dimensions
) -> Iterator[Case]:
    """Yield every operation for `batch` pictures of `side` pixels squared."""
    world = _World(side, batch, dtype, device, dimensions)
    yield _text_norm(ops, world)
    yield from _elementwise(ops, world)
    yield _attention(ops, world)
    yield from _products(ops, world)
    yield from _pictures(ops, world)


class _World:
    """Random tensors of a step's shapes."""

    def __init__(
        self, side: int, batch: int, dtype: torch.dtype, device: torch.device, dimensions: Dimensions
    ) -> None:
        img_rows = (side // 16) ** 2
        txt, img = spans([TXT_ROWS] * batch), spans([img_rows] * batch, start=TXT_ROWS * batch)
        self.side, self.batch, self.dtype, self.device = side, batch, dtype, device
        self.dimensions = dimensions
        self.rows = batch * (TXT_ROWS + img_rows)
        self.owners = Owners.build(img + txt, device)
        self.img_owners = Owners.build(spans([img_rows] * batch), device)
        self.sequences = Sequences.build(list(zip(txt, img, strict=True)), device)
        self.shape = f"{side}x{side} batch {batch}"

    def random(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(shape, device=self.device).to(dtype or self.dtype)


def _text_norm(ops: Ops, world: _World) -> Case:
    rows, width = world.batch * TXT_ROWS, world.dimensions.text_width
    states, scale = world.random(rows, width), world.random(width)
    return Case(
        "rms_norm",
        world.shape,
        partial(ops.rms_norm, states, scale),
        partial(reference.rms_norm, states, scale),
        2 * states.nbytes,
    )


def _elementwise(ops: Ops, world: _World) -> Iterator[Case]:
    rows, width, owners = world.rows, world.dimensions.width, world.owners
    x, y = world.random(rows, width), world.random(rows, width)
    shift, scale, gate = (0.1 * world.random(len(owners.spans), width) for _ in range(3))
    row_bytes = rows * width * x.element_size()
    yield Case(
        "modulated_norm",
        world.shape,
        partial(ops.modulated_norm, x, shift, scale, owners),
        partial(reference.modulated_norm, x, shift, scale, owners),
        2 * row_bytes,
    )
    kept = x.clone()  # copied first, since the operation changes its input: two more passes

    def added(op: GatedResidualNorm) -> Tensor:
        normed = op(x.copy_(kept), gate, y, shift, scale, owners)
        return torch.cat([x, normed])

    yield Case(
        "gated_residual_norm",
        world.shape,
        partial(added, ops.gated_residual_norm),
        partial(added, reference.gated_residual_norm),
        (4 + 2 + 4) * row_bytes,  # with a copy before and one behind
    )
    head_dim = world.dimensions.head_dim
    qkv, fresh = world.random(rows, 3 * width), world.random(rows, 3 * width)
    weight, angles = world.random(head_dim), world.random(rows, head_dim // 2, dtype=torch.float32)
    cos, sin = angles.cos(), angles.sin()

    def turned(op: QkNormRope) -> Tensor:
        op(qkv.copy_(fresh), weight, weight, cos, sin)
        return qkv

    yield Case(
        "qk_norm_rope",
        world.shape,
        lambda: turned(ops.qk_norm_rope).clone(),
        lambda: turned(reference.qk_norm_rope).clone(),
        (4 + 6 + 6) * row_bytes + 2 * angles.nbytes,  # with a copy before and one behind
    )
    hidden = world.random(rows, 4 * width)
    yield Case(
        "gelu_tanh",
        world.shape,
        partial(ops.gelu_tanh, hidden, (rows,), None),
        partial(reference.gelu_tanh, hidden, (rows,)),
        8 * row_bytes,
    )


def _attention(ops: Ops, world: _World) -> Case:
    heads, head_dim = world.dimensions.heads, world.dimensions.head_dim
    q, k, v = world.random(world.rows, 3, heads, head_dim).unbind(1)
    lengths = [txt.rows + img.rows for txt, img in world.sequences.spans]

    def library(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return reference.attention(q, k, v, world.sequences)

    backends = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "FlashAttention": SDPBackend.FLASH_ATTENTION}
    return Case(
        "attention",
        world.shape,
        partial(ops.attention, q, k, v, world.sequences, None),
        partial(reference.attention, q, k, v, world.sequences),
        4 * world.rows * world.dimensions.width * q.element_size(),
        4 * sum(length**2 for length in lengths) * world.dimensions.width,
        {name: partial(library, backend) for name, backend in backends.items()},
    )


def _products(ops: Ops, world: _World) -> Iterator[Case]:
    rows, width = world.rows, world.dimensions.width
    for op, depth, columns in (
        ("linear", width, 4 * width),
        ("linear", 5 * width, width),
        ("linear_gelu", width, 4 * width),
    ):
        x, weight = world.random(rows, depth), depth**-0.5 * world.random(columns, depth)
        bias = world.random(columns)
        yield Case(
            op,
            f"{world.shape}, {depth} to {columns}",
            partial(getattr(ops, op), x, weight, bias, (rows,), None),
            partial(getattr(reference, op), x, weight, bias, (rows,)),
            (rows * depth + depth * columns + rows * columns) * x.element_size(),
            2 * rows * depth * columns,
        )


def _pictures(ops: Ops, world: _World) -> Iterator[Case]:
    side, batch = world.side, world.batch
    image = world.random(1, 3, side, side).to(memory_format=torch.channels_last)[0]
    yield Case(
        "to_pixels",
        world.shape,
        partial(ops.to_pixels, image),
        partial(reference.to_pixels, image),
        image.numel() * (image.element_size() + 1),
    )
    latents = world.random(batch * (side // 16) ** 2, 64, dtype=torch.float32)
    velocity = world.random(*latents.shape)
    deltas = world.random(batch, dtype=torch.float32)
    yield Case(
        "euler_step",
        world.shape,
        partial(ops.euler_step, latents, velocity, deltas, world.img_owners),
        partial(reference.euler_step, latents, velocity, deltas, world.img_owners),
        2 * latents.nbytes + velocity.nbytes,
    )
    channels = world.dimensions.channels
    x = world.random(1, channels, side, side).to(memory_format=torch.channels_last)
    weight, bias = world.random(channels), world.random(channels)
    groups = min(32, channels)
    yield Case(
        "group_norm_silu",
        world.shape,
        partial(ops.group_norm_silu, x, groups, weight, bias, 1e-6, silu=True),
        partial(reference.group_norm_silu, x, groups, weight, bias, 1e-6, silu=True),
        3 * x.nbytes,
    )
