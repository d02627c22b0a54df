"""Group-relative advantage: how much better a sample's reward is than those of its group (DeepSeekMath section 4.1).

advantage = (reward - baseline) / (scale + eps)
"""

# N samples, S the same samples sorted by group, G groups

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from r1fast.kernels.checks import describe, reads_values, uses_triton
from r1fast.kernels.library import op

Baseline = Literal["mean", "leave_one_out", "none"]
Scale = Literal["group_std", "batch_std", "none"]
BASELINES = ("mean", "leave_one_out", "none")
SCALES = ("group_std", "batch_std", "none")


def group_advantage_reference(
    rewards_N: Tensor,
    group_N: Tensor,
    *,
    baseline: Baseline = "mean",
    scale: Scale = "group_std",
    unbiased: bool = True,
    eps: float = 0.0,
) -> Tensor:
    """The definition, a group at a time, in fp64."""
    rewards_N = rewards_N.double()
    advantage_N = torch.zeros_like(rewards_N)
    for group in torch.unique(group_N):
        members = group_N == group
        own = rewards_N[members]
        if own.max() == own.min():
            continue
        if baseline == "mean":
            centred = own - own.mean()
        elif baseline == "leave_one_out":
            centred = own - (own.sum() - own) / (len(own) - 1)
        else:
            centred = own
        spread = {"group_std": own, "batch_std": rewards_N}.get(scale)
        advantage_N[members] = centred if spread is None else centred / (spread.std(unbiased=unbiased) + eps)
    return advantage_N


def _fake(rewards_N: Tensor, *_: object) -> Tensor:
    return torch.empty_like(rewards_N, dtype=torch.float64 if rewards_N.dtype == torch.float64 else torch.float32)


@op(
    "group_advantage(Tensor rewards, Tensor group, str baseline, str scale, bool unbiased, float eps, bool check) "
    "-> Tensor",
    fake=_fake,
)
def _advantage(
    rewards_N: Tensor, group_N: Tensor, baseline: str, scale: str, unbiased: bool, eps: float, check: bool
) -> Tensor:
    _check_values(rewards_N, check)
    if uses_triton(rewards_N):
        from r1fast.kernels.group_advantage_kernels import launch

        return launch(rewards_N, group_N, baseline, scale, unbiased, eps)
    out_dtype = torch.float64 if rewards_N.dtype == torch.float64 else torch.float32
    if not len(rewards_N):
        return torch.zeros(0, dtype=out_dtype, device=rewards_N.device)
    rewards = rewards_N.double()
    _, index_N, size_G = torch.unique(group_N, return_inverse=True, return_counts=True)
    order_S = torch.argsort(index_N, stable=True)
    group_S = index_N[order_S]
    reward_S = rewards[order_S]

    def per_group(values_S: Tensor, reduce: str) -> Tensor:
        # sums segments in order, so the same bits every time, where scattered atomics would not give them
        return torch.segment_reduce(values_S, reduce, lengths=size_G)

    # two passes, sum (x - mean)^2: E[x^2] - E[x]^2 cancels where rewards are large and close
    centred_S = reward_S - (per_group(reward_S, "sum") / size_G)[group_S]
    if baseline == "mean":
        numerator_S = centred_S
    elif baseline == "leave_one_out":
        # R - (G mean - R) / (G - 1) = (R - mean) G / (G - 1)
        numerator_S = centred_S * (size_G / (size_G - 1).clamp(min=1))[group_S]
    else:
        numerator_S = reward_S
    if scale == "group_std":
        variance_G = per_group(centred_S.square(), "sum") / (size_G - int(unbiased)).clamp(min=1)
        numerator_S = numerator_S / (variance_G.sqrt() + eps)[group_S]
    elif scale == "batch_std":
        variance = (rewards - rewards.mean()).square().sum() / max(1, len(rewards) - int(unbiased))
        numerator_S = numerator_S / (variance.sqrt() + eps)
    constant_G = per_group(reward_S, "max") == per_group(reward_S, "min")
    advantage_S = torch.where(constant_G[group_S], 0.0, numerator_S)
    return torch.empty_like(advantage_S).index_copy_(0, order_S, advantage_S).to(out_dtype)


def group_advantage(
    rewards_N: Tensor,
    group_N: Tensor,
    *,
    baseline: Baseline = "mean",
    scale: Scale = "group_std",
    unbiased: bool = True,
    eps: float = 0.0,
    check: bool = False,
) -> Tensor:
    """Advantage [N] of each sample: fp32 (fp64 for fp64 rewards), computed in fp64, on the rewards' device.

    `rewards_N`: finite numbers. `group_N`: integer group ids in any order, groups of any sizes. `baseline`: the
    group's mean (GRPO), the mean of the others (RLOO) or none. `scale`: the standard deviation of the group (GRPO) or
    of all rewards given here, or none (Dr. GRPO); `unbiased` divides by n - 1; `eps` is added to it. A group whose
    rewards are all equal, a singleton too, says nothing about which sample was better: exactly 0, with every setting.
    Not differentiable.

    Raises ValueError for shapes, dtypes and names that do not fit, and on the CPU for a reward that is not finite (on
    CUDA values are read only with `check`, which waits for the GPU: else that group's advantages are NaN).
    """
    _check(rewards_N, group_N, baseline, scale, eps)
    advantage_N: Tensor = _advantage(rewards_N.detach(), group_N, baseline, scale, unbiased, float(eps), check)
    return advantage_N


def _check(rewards_N: Tensor, group_N: Tensor, baseline: str, scale: str, eps: float) -> None:
    if rewards_N.dim() != 1 or rewards_N.is_complex():
        raise ValueError(f"rewards must be real [N], they are {describe(rewards_N)}")
    integers = not (group_N.is_floating_point() or group_N.is_complex())
    if group_N.shape != rewards_N.shape or not integers or group_N.device != rewards_N.device:
        raise ValueError(
            f"group ids must be integers [{len(rewards_N)}] on {rewards_N.device}, they are {describe(group_N)}"
        )
    if baseline not in BASELINES:
        raise ValueError(f"baseline = {baseline!r} must be one of {', '.join(BASELINES)}")
    if scale not in SCALES:
        raise ValueError(f"scale = {scale!r} must be one of {', '.join(SCALES)}")
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps = {eps} must be at least 0 and finite; 0 is safe, equal rewards are never divided")


def _check_values(rewards_N: Tensor, check: bool) -> None:
    """ValueError unless finite, where values are read."""
    if not reads_values(rewards_N, check):
        return
    bad_N = ~rewards_N.isfinite()
    if bool(bad_N.any()):
        first = int(bad_N.nonzero()[0, 0])
        raise ValueError(
            f"{int(bad_N.sum())} of {len(rewards_N)} rewards are not finite, first {float(rewards_N[first])} at "
            f"{first}; a reward that fails must give a score (0) and an outcome, not NaN"
        )
