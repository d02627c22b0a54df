"""Machine code of csrc's CUDA kernels, with no GPU: no spill, no budget passed, the instructions that are meant."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="Triton is for Linux, and brings cuobjdump and nvdisasm")

from bench.cubins import ARCHITECTURES, BLOCK_BYTES, CUDA, Cubin, compile_all, compile_file

NVCC = shutil.which("nvcc")
pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc, NVIDIA's CUDA compiler: there is none here")


@pytest.fixture(scope="module")
def cubins() -> list[Cubin]:
    assert NVCC is not None
    return compile_file(NVCC, CUDA / "paged_decode_64.cu", 90)


def test_the_decode_kernel(cubins: list[Cubin]) -> None:
    assert [(cubin.dtype, cubin.head_dim) for cubin in cubins] == [("FP16", 64), ("BF16", 64)]
    for cubin in cubins:
        assert not cubin.faults(), cubin.row()


@pytest.mark.slow
def test_every_kernel() -> None:
    """Also `python -m bench.cubins`, which .ci/run runs."""
    assert NVCC is not None
    found = compile_all(NVCC)
    # 4 head_dims of 2 dtypes for three kernels; plan, copy and step; the sampler's 3 dtypes
    assert len(found) == len(ARCHITECTURES) * (3 * 4 * 2 + 3 + 3)
    for cubin in found:
        assert not cubin.faults(), cubin.row()


@pytest.mark.parametrize(
    ("pattern", "replacement", "fault"),
    [
        (r"(LDGSTS\S*)\.128\b", r"\1", r"no LDGSTS"),
        (r"HMMA", r"FFMA", r"no HMMA"),
        (r"LDSM", r"LDS", r"no LDSM"),
        (r"LDSM", r"LDL", r"local memory"),
    ],
)
def test_a_missing_instruction_is_noticed(cubins: list[Cubin], pattern: str, replacement: str, fault: str) -> None:
    broken = replace(cubins[0], sass=re.sub(pattern, replacement, cubins[0].sass))
    assert any(re.match(fault, text) or fault in text for text in broken.faults())


def test_a_spill_and_a_passed_budget_are_noticed(cubins: list[Cubin]) -> None:
    broken = replace(cubins[0], stack_bytes=8, registers=256, shared_bytes=BLOCK_BYTES[90] + 1)
    text = "; ".join(broken.faults())
    assert "8 bytes of stack" in text
    assert "256 registers, the budget is 255" in text
    assert "bytes of shared memory, a block has" in text
    assert "do not fit together" in text
