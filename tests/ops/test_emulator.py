"""The emulator that the CUDA kernels' tests stand on: primitives lane by lane, and what it must not let pass."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from emulated import emulated


@pytest.fixture(scope="module")
def module() -> ModuleType:
    return emulated()


def probe(module: ModuleType, name: str, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a probe on random bf16 A [16, 16] and B^T [8, 16]; returns both."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(16, 16, generator=generator).bfloat16()
    b = torch.randn(8, 16, generator=generator).bfloat16()
    module.probe(name, a.data_ptr(), b.data_ptr(), out.data_ptr())
    return a.float(), b.float()


def test_ldmatrix_and_mma_multiply_matrices(module: ModuleType) -> None:
    out = torch.full((16, 8), torch.nan)
    a, b = probe(module, "multiply", out)
    torch.testing.assert_close(out, a @ b.T, rtol=0, atol=1e-5)


def test_both_transposes(module: ModuleType) -> None:
    out = torch.full((2, 8, 8), torch.nan)
    a, _ = probe(module, "transpose", out)
    assert torch.equal(out, a[:8, :8].T.expand(2, 8, 8))


def test_shuffles_and_match(module: ModuleType) -> None:
    out = torch.full((3, 32), torch.nan)
    probe(module, "shuffle", out)
    lanes = torch.arange(32)
    assert torch.equal(out[0].long(), lanes ^ 5)
    assert torch.equal(out[1].long(), torch.where(lanes < 3, lanes, lanes - 3))
    expected = torch.tensor([0xF << lane // 4 * 4 for lane in range(32)])
    assert torch.equal(out[2], expected.float())


def test_a_copy_lands_at_its_wait(module: ModuleType) -> None:
    out = torch.zeros(2, 32)
    probe(module, "early_read", out)
    assert out[0].isnan().all()
    assert torch.equal(out[1], torch.zeros(32))


def test_a_missing_barrier_shows_in_some_order_of_warps(module: ModuleType) -> None:
    expected = (torch.arange(128) + 96) % 128
    wrong = 0
    try:
        for seed in range(1, 9):
            module.set_schedule(seed)
            out = torch.zeros(128)
            probe(module, "exchange", out)
            wrong += not torch.equal(out, expected.float())
    finally:
        module.set_schedule(0)
    assert wrong


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing_barrier", r"threads wait for ever: 0 at __syncthreads 1 at"),
        ("divergent", r"lanes of a warp meet at different operations: warp_sync and shuffle_xor"),
        ("behind_the_end", r"written behind the 1024 bytes of shared memory"),
        ("forgotten_copy", r"ends with copies that it never waited for"),
    ],
)
def test_what_no_gpu_would_survive(module: ModuleType, name: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        probe(module, name, torch.zeros(1))
    test_ldmatrix_and_mma_multiply_matrices(module)  # and the next launch is none the worse
