"""The benchmark's own sums, on a machine without a GPU: cases agree with their rivals, floors are right."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.bench.__main__ import Row, Timer, bench
from kernels.cases import Case, Dimensions, Operation, cases
from kernels.machine import Roof
from kernels.ops import Ops, reference_ops
from tests.kernels.worlds import DEVICE

SMALL = Dimensions(heads=2, head_dim=32, text_width=48, channels=(8, 16), norm_groups=4)
MACHINE = {"device": "a GPU", "driver": "1", "torch": "2", "triton": "3", "commit": "4"}


def small_cases() -> Iterator[Case]:
    return cases([64, 64], dtype=torch.float32, device=DEVICE, dimensions=SMALL)


def rows(
    every: Iterable[Case],
    ops: Ops | None = None,
    rivals: Mapping[str, Mapping[str, Operation]] | None = None,
    timer: Timer = lambda call: (1e-6, 2e-6, 3e-6),
) -> list[Row]:
    return list(
        bench(
            every,
            ops=ops or reference_ops(),
            rivals=rivals or {},
            roof=Roof(bytes_per_s=1e12, flops_per_s=1e15),
            dtype=torch.float32,
            machine=MACHINE,
            timer=timer,
        )
    )


def test_every_operation_is_timed_beside_a_rival() -> None:
    found: dict[str, set[str]] = {}
    for row in rows(small_cases()):
        found.setdefault(row.op, set()).add(row.implementation)
        assert row.error < 1e-5
        assert (row.p20_us, row.p50_us, row.p80_us) == (1.0, 2.0, 3.0)
    assert set(found) == {
        "rms_norm",
        "modulated_norm",
        "gated_residual_norm",
        "qk_norm_rope",
        "gelu_tanh",
        "quantize",
        "quantized_gelu",
        "quantized_linear",
        "attention",
        "linear",
        "linear_gelu",
        "linear_residual",
        "low_rank_add",
        "to_pixels",
        "euler_step",
        "group_norm_silu",
    }
    assert all(names == {"ours", "torch"} for names in found.values())


def test_the_floor_is_what_bytes_or_operations_take() -> None:
    of_norms = [row.floor_us for row in rows(small_cases()) if row.op == "modulated_norm"]
    tokens, width = 2 * (256 + 16), 64
    plain, quantised = 2 * tokens * width * 4, tokens * width * (4 + 1)
    assert [1e-6 * floor_us * 1e12 for floor_us in of_norms] == [plain, plain, quantised, quantised]
    attention = next(case for case in small_cases() if case.op == "attention")
    assert attention.flops == 4 * 2 * (256 + 16) ** 2 * width
    assert Roof(1e12, 1e3).floor_s(attention) == attention.flops / 1e3


def test_what_runs_in_place_can_be_timed_again_and_again() -> None:
    """It stays finite, and the next implementation still finds the operands of the first."""

    def finite(operation: Operation) -> Operation:
        def checked(*operands: Any) -> Any:
            out = operation(*operands)
            assert all(x.isfinite().all() for x in operands if isinstance(x, Tensor))
            return out

        return checked

    def repeated(call: Callable[[], object]) -> tuple[float, float, float]:
        for _ in range(200):
            call()
        return 1e-6, 2e-6, 3e-6

    plain, names = reference_ops(), ("gated_residual_norm", "qk_norm_rope")
    ops = replace(plain, **{name: finite(getattr(plain, name)) for name in names})
    found = rows((case for case in small_cases() if case.op in names), ops, timer=repeated)
    assert [(row.op, row.implementation, row.error) for row in found] == [
        (name, implementation, 0.0) for name in names for implementation in ("ours", "torch")
    ]


def nonsense(*operands: object) -> Tensor:
    return torch.zeros(3)


def missing(*operands: object) -> Tensor:
    raise RuntimeError("no such backend")


def test_nonsense_is_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    case = Case(
        "gelu_tanh",
        "small",
        lambda op: op(torch.ones(3), (3,), None),
        timed=pytest.fail,
        bytes_moved=1,
        tolerance=0.1,
    )
    ops = replace(reference_ops(), gelu_tanh=nonsense)
    with pytest.raises(AssertionError, match=r"gelu_tanh at small: ours is off by 1 of the norm"):
        rows([case], ops)
    found = rows(
        [replace(case, timed=case.result)], rivals={"gelu_tanh": {"wrong": nonsense, "absent": missing}}
    )
    assert [row.implementation for row in found] == ["ours", "torch"]
    said = capsys.readouterr().out
    assert "gelu_tanh at small: wrong is off by 1 of the norm" in said
    assert "gelu_tanh at small: absent does not run: no such backend" in said
