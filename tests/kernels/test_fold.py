"""Where exp(z - max z) becomes the gradient of the logits in place, its factors in the small operands: on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rounding import INTERPRETED
from torch import Tensor

from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.kernels.linear_grpo import linear_grpo_loss, linear_grpo_loss_reference

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the path without Triton")
TOKENS, WIDTH, VOCABULARY = 48, 32, 257
OPTIONS = PolicyLoss(objective="reinforce", kl="none", aggregate="token_mean")


def confident(sharpness: float) -> dict[str, Any]:
    """Each token's own logit is the larger the sharper; the others' are small."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    hidden = weight[targets] * (sharpness / WIDTH) + 0.02 * torch.randn(TOKENS, WIDTH, generator=generator)
    return {
        "hidden_TD": hidden.bfloat16(),
        "weight_VD": weight.bfloat16(),
        "targets_T": targets,
        "advantage_N": torch.tensor([1.0, -0.5]),
        "cu_seqlens": torch.tensor([0, TOKENS // 3, TOKENS]),
        "denominator": float(TOKENS),
        "options": OPTIONS,
    }


def gradients(function: Any, batch: dict[str, Any], dtype: torch.dtype, **more: Any) -> tuple[Tensor, ...]:
    leaves = {name: batch[name].to(dtype).requires_grad_() for name in ("hidden_TD", "weight_VD")}
    result = function(**{**batch, **leaves, **more})
    loss = result[0] if isinstance(result, tuple) else result
    return torch.autograd.grad(loss, list(leaves.values()))


@pytest.mark.parametrize("sharpness", [1.0, 12.0, 22.0])
@pytest.mark.parametrize("budget_bytes", [48 << 20, 20_000])
def test_a_confident_tokens_small_gradient_does_not_drown(sharpness: float, budget_bytes: int) -> None:
    """At p = 0.9999 the target's part and the others' nearly cancel: each must be exact for itself."""
    batch = confident(sharpness)
    found = gradients(linear_grpo_loss, batch, torch.bfloat16, memory_budget_bytes=budget_bytes)
    expected = gradients(linear_grpo_loss_reference, batch, torch.float64)
    for own, right in zip(found, expected, strict=True):
        assert (own.double() - right).norm() < 4e-3 * right.norm()
    size_T = expected[0].norm(dim=1)
    seen_T = size_T > 1e-5 / TOKENS * batch["weight_VD"].double().norm(dim=1).mean()  # 1 - p above fp32's resolution
    by_token = (found[0].double() - expected[0]).norm(dim=1) / size_T
    assert seen_T.any() and by_token[seen_T].max() < 2e-2


@pytest.mark.parametrize("temperature", [0.7, torch.linspace(0.5, 2.0, TOKENS)])
def test_temperature_bias_and_repeated_targets(temperature: float | Tensor) -> None:
    batch = confident(2.0) | {"temperature": temperature, "bias_V": torch.linspace(-1, 1, VOCABULARY)}
    batch["targets_T"] = batch["targets_T"] % 3
    found = gradients(linear_grpo_loss, batch, torch.float32)
    for own, right in zip(found, gradients(linear_grpo_loss_reference, batch, torch.float64), strict=True):
        torch.testing.assert_close(own.double(), right, rtol=1e-4, atol=1e-7)
