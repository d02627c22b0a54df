"""bf16 on a CPU that does not multiply it: the same results as in float32 but for one rounding, and a hint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from r1fast import cpu_products
from r1fast.rollout import fused_layers
from r1fast.rollout.fused_layers import PackedLinear


@pytest.mark.parametrize("bias", [False, True])
def test_products_are_those_of_fp32_rounded_once(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_layers, "multiplied_in_fp32", lambda dtype: dtype == torch.bfloat16)
    torch.manual_seed(0)
    layers = [nn.Linear(64, width, bias=bias, dtype=torch.bfloat16) for width in (48, 32)]
    rows = torch.randn(32, 64, dtype=torch.bfloat16)
    packed = PackedLinear(layers)
    found = packed(rows)
    assert found.dtype == torch.bfloat16 and torch.equal(packed(rows[:16]), found[:16])
    exact = torch.cat([layer.double()(rows.double()) for layer in layers], 1)
    assert torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-6)


def test_the_hint_is_for_bf16_on_such_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for wide in (True, False):
        monkeypatch.setattr(cpu_products, "multiplied_in_fp32", lambda dtype, wide=wide: wide and dtype.itemsize == 2)
        assert bool(cpu_products.slow_dtype_hint(torch.bfloat16, cpu)) == wide
        assert not cpu_products.slow_dtype_hint(torch.float32, cpu)
        assert not cpu_products.slow_dtype_hint(torch.bfloat16, gpu)
    hint = "--run.dtype float32"
    monkeypatch.setattr(cpu_products, "multiplied_in_fp32", lambda dtype: True)
    assert hint in cpu_products.slow_dtype_hint(torch.bfloat16, cpu)
