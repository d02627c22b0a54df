"""A step whose groups were all left out: what looks at its sums before the update finds every figure's count."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_run import save_model

from r1fast.config import OptimizerConfig
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.metrics import ratios
from r1fast.policy import Policy
from r1fast.trainer import Trainer


def test_a_step_without_sequences_is_checked_as_any_other(tmp_path: Path) -> None:
    policy = Policy.load(save_model(tmp_path), device="cpu", dtype=torch.float32)
    seen: list[dict[str, float]] = []
    sums = Trainer(policy, OptimizerConfig()).step(
        [], loss=PolicyLoss(kl="none"), denominator=8.0, lr=1e-3, check=lambda sums: seen.append(ratios(sums))
    )
    assert seen[0]["loss"] == 0.0 and sums["grad_norm_sum"] == 0.0
