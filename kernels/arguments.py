"""What the kernels' wrappers refuse: each raises `ValueError` with the values seen."""

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_rows(name: str, x: Tensor, *, like: Tensor | None = None, rows: int | None = None) -> None:
    """Check that `x` is [rows, width] in a dtype that the kernels take, columns adjacent in memory.

    With `like` it must have its shape, dtype and device.
    """
    if x.dim() != 2 or x.stride(1) != 1 or x.dtype not in DTYPES:
        raise ValueError(
            f"{name}: {describe(x)}; allowed: two dimensions, adjacent columns, and one of {names(DTYPES)}"
        )
    if like is not None and (x.shape, x.dtype, x.device) != (like.shape, like.dtype, like.device):
        raise ValueError(f"{name}: {describe(x)} does not fit {describe(like)}")
    if rows is not None and len(x) != rows:
        raise ValueError(f"{name}: {describe(x)}, but the layout has {rows} rows")


def check_columns(name: str, x: Tensor, width: int, *, like: Tensor, rows: int | None = None) -> None:
    """Check that `x` is [width], or [rows, width] with adjacent columns, in the dtype and place of `like`."""
    shape = (width,) if rows is None else (rows, width)
    if tuple(x.shape) != shape or x.stride(-1) != 1 or (x.dtype, x.device) != (like.dtype, like.device):
        raise ValueError(
            f"{name}: {describe(x)}; allowed: shape {list(shape)}, adjacent columns, "
            f"{like.dtype} on {like.device}"
        )


def describe(x: Tensor) -> str:
    return f"shape {list(x.shape)}, strides {list(x.stride())}, {x.dtype} on {x.device}"


def names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
