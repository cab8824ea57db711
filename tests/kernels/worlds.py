"""What the tests of the kernels share: awkward rows, poisoned memory, and how far a kernel may be off.

Tolerances are in units of rounding, `eps` of the dtype: a kernel computes in float32 and rounds once at the
end, the reference is run in float64 on the same inputs. So an element may be off by the final rounding, half
an `eps` of its size, and by what float32 sums of `terms` values lose, `sqrt(terms)` roundings of the largest
intermediate `size`; both with a factor of four for unlucky draws.
"""

import pytest
import torch
from torch import Tensor

from kernels.rows import Owners, Sequences, spans

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE.type == "cuda" else [])
SCALES = [1e-3, 1.0, 100.0]
FLOAT32_EPS = torch.finfo(torch.float32).eps

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
scales = pytest.mark.parametrize("scale", SCALES)


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (values * scale).to(dtype).to(DEVICE)


def columns_of(x: Tensor, *, before: int = 8, after: int = 8) -> Tensor:
    """The values of `x` [rows, width] as some columns of a wider tensor that is NaN everywhere else."""
    wide = torch.full((len(x), before + x.shape[1] + after), torch.nan, dtype=x.dtype, device=x.device)
    inside = wide[:, before : before + x.shape[1]]
    inside.copy_(x)
    return inside


def poisoned(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """An output whose every element must be written, within a tensor of which nothing else may be."""
    return columns_of(torch.full((rows, width), torch.nan, dtype=dtype, device=DEVICE))


def assert_untouched_around(inside: Tensor) -> None:
    """Nothing was written beside the columns that `columns_of` gave out."""
    base = inside._base
    assert base is not None
    assert base[:, :8].isnan().all()
    assert base[:, 8 + inside.shape[1] :].isnan().all()


def owners(*lengths: int) -> Owners:
    return Owners.build(spans(lengths), DEVICE)


def sequences(txt: tuple[int, ...], img: tuple[int, ...]) -> Sequences:
    txt_spans = spans(txt)
    img_spans = spans(img, start=sum(txt))
    return Sequences.build(list(zip(txt_spans, img_spans, strict=True)), DEVICE)


def per_row(vectors: Tensor, layout: Owners) -> Tensor:
    return vectors[layout.by_row.long()]


def assert_near(actual: Tensor, exact: Tensor, *, terms: int, size: float | None = None) -> None:
    """See this module's docstring; `exact` is float64, `size` defaults to its largest element."""
    assert actual.isfinite().all()
    largest = float(exact.abs().max()) if size is None else size
    absolute = 4 * FLOAT32_EPS * terms**0.5 * largest
    smallest = torch.finfo(actual.dtype).smallest_normal
    allowed = 4 * (0.5 * torch.finfo(actual.dtype).eps * exact.abs()) + absolute + smallest
    excess = (actual.double() - exact).abs() - allowed
    assert excess.max() <= 0, f"off by {float(excess.max()):.3e} more than allowed"
