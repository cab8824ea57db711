"""The benchmark's own sums, on a machine without a GPU: cases agree with their rivals, floors are right."""

from dataclasses import replace

import pytest
import torch

from kernels.bench.__main__ import Roof, Row, bench, describe_machine
from kernels.cases import Case, Dimensions, cases
from kernels.ops import Ops, reference_ops
from tests.kernels.worlds import DEVICE

SMALL = Dimensions(heads=2, head_dim=32, text_width=48, channels=16)
MACHINE = {"gpu": "a GPU", "driver": "1", "torch": "2", "triton": "3", "commit": "4"}


def small_cases(ops: Ops) -> list[Case]:
    every = cases(ops, side=64, batch=2, dtype=torch.float32, device=DEVICE, dimensions=SMALL)
    return [replace(case, rivals={}) for case in every]  # which need a GPU


def rows(every: list[Case]) -> list[Row]:
    roof = Roof(bytes_per_s=1e12, flops_per_s=1e15)
    return list(
        bench(every, roof=roof, dtype=torch.float32, machine=MACHINE, timer=lambda call: (1e-6, 2e-6, 3e-6))
    )


def test_every_operation_is_timed_beside_a_rival() -> None:
    found: dict[str, set[str]] = {}
    for row in rows(small_cases(reference_ops())):
        found.setdefault(row.op, set()).add(row.implementation)
        assert row.error < 1e-5
        assert (row.p20_us, row.p50_us, row.p80_us) == (1.0, 2.0, 3.0)
    assert set(found) == {
        "rms_norm",
        "modulated_norm",
        "gated_residual_norm",
        "qk_norm_rope",
        "gelu_tanh",
        "attention",
        "linear",
        "linear_gelu",
        "to_pixels",
        "euler_step",
        "group_norm_silu",
    }
    assert all(names == {"ours", "torch"} for names in found.values())


def test_the_floor_is_what_bytes_or_operations_take() -> None:
    by_op = {row.op: row for row in rows(small_cases(reference_ops()))}
    tokens, width = 2 * (256 + 16), 64
    assert by_op["modulated_norm"].floor_us * 1e-6 * 1e12 == 2 * tokens * width * 4
    attention = next(case for case in small_cases(reference_ops()) if case.op == "attention")
    assert attention.flops == 4 * 2 * (256 + 16) ** 2 * width
    assert Roof(1e12, 1e3).floor_s(attention) == attention.flops / 1e3


def test_nonsense_is_not_timed() -> None:
    wrong = Case("gelu_tanh", "small", lambda: torch.zeros(3), lambda: torch.ones(3), 1)
    with pytest.raises(AssertionError, match=r"gelu_tanh at small: ours is off by 1 of the norm"):
        rows([wrong])


def test_the_machine_is_described() -> None:
    assert set(describe_machine()) == set(MACHINE)
