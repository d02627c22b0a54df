"""Machine code of every launch, with no GPU: no spill, no budget passed, rows read 16 bytes at a time."""

from __future__ import annotations

import pytest
from rounding import INTERPRETED

if INTERPRETED:
    pytest.skip("the interpreter takes the kernels' place: nothing is compiled", allow_module_level=True)

pytest.importorskip("triton", reason="Triton is for Linux")

from bench.aot import ARCHITECTURES
from bench.launches import CASES, Case, row


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", [case for case in CASES if case.common], ids=lambda case: case.name)
def test_what_training_launches(case: Case, architecture: int) -> None:
    binary = case.launch().compile(architecture)
    assert not case.faults(binary), row(case, binary)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in CASES if not case.common], ids=lambda case: case.name)
def test_what_else_can_be_launched(case: Case) -> None:
    launch = case.launch()
    for architecture in ARCHITECTURES:
        binary = launch.compile(architecture)
        assert not case.faults(binary), row(case, binary)


def test_a_narrow_load_a_spill_and_a_budget_are_noticed() -> None:
    case = next(case for case in CASES if case.row_bytes)
    binary = case.launch().compile(90)
    assert not case.faults(binary)
    binary.ptx = binary.ptx.replace(".v4.b32", ".v2.b32")
    binary.stack_bytes, binary.registers, binary.shared_bytes = 8, 255, 1 << 15
    assert len(case.faults(binary)) == 4
