"""Triton kernel of `group_advantage`: any layout of groups in one launch, the same bits every time.

Every sample compares its group with all others': N^2 comparisons, which at the sizes of a rollout (a thousand samples)
cost less than sorting. In fp64, two passes. The settings are run-time arguments. Formulas: `group_advantage`.
"""

# N samples, I the samples of one program, J the samples they are compared with at a time

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1fast.kernels.checks import on_device

BASELINES = ("mean", "leave_one_out", "none")
SCALES = ("group_std", "batch_std", "none")
LEAVE_ONE_OUT, NO_BASELINE = tl.constexpr(1), tl.constexpr(2)
GROUP_STD, BATCH_STD = tl.constexpr(0), tl.constexpr(1)

# 16 fp64 comparisons a thread
BLOCK_I, BLOCK_J, NUM_WARPS = 16, 128, 4


@triton.jit(do_not_specialize=["num_samples", "baseline", "scale", "degrees_lost"])
def _group_advantage_kernel(
    rewards_ptr,
    group_ptr,
    out_ptr,
    num_samples,
    baseline,
    scale,
    degrees_lost,  # 1 for the unbiased standard deviation, else 0
    eps,
    BLOCK_OWN: tl.constexpr,
    BLOCK_OTHER: tl.constexpr,
):
    own = tl.program_id(0) * BLOCK_OWN + tl.arange(0, BLOCK_OWN)
    other = tl.arange(0, BLOCK_OTHER)
    inside = own < num_samples
    reward = tl.load(rewards_ptr + own, mask=inside, other=0.0).to(tl.float64)
    group = tl.load(group_ptr + own, mask=inside, other=0)
    size = tl.zeros([BLOCK_OWN], tl.float64)
    total = tl.zeros([BLOCK_OWN], tl.float64)
    largest = reward
    smallest = reward
    batch_total = tl.zeros([BLOCK_OTHER], tl.float64)
    for first in range(0, num_samples, BLOCK_OTHER):
        there = first + other < num_samples
        r = tl.load(rewards_ptr + first + other, mask=there, other=0.0).to(tl.float64)
        same = (group[:, None] == tl.load(group_ptr + first + other, mask=there, other=0)[None, :]) & there[None, :]
        same_r = tl.where(same, r[None, :], 0.0)
        size += tl.sum(tl.where(same, 1.0, 0.0).to(tl.float64), axis=1)
        total += tl.sum(same_r, axis=1)
        largest = tl.maximum(largest, tl.max(tl.where(same, r[None, :], reward[:, None]), axis=1))
        smallest = tl.minimum(smallest, tl.min(tl.where(same, r[None, :], reward[:, None]), axis=1))
        batch_total += r
    mean = total / tl.maximum(size, 1.0)
    batch_mean = tl.sum(batch_total, axis=0) / num_samples
    # the second pass: E[x^2] - E[x]^2 cancels where rewards are large and close
    squares = tl.zeros([BLOCK_OWN], tl.float64)
    batch_squares = tl.zeros([BLOCK_OTHER], tl.float64)
    for first in range(0, num_samples, BLOCK_OTHER):
        there = first + other < num_samples
        r = tl.load(rewards_ptr + first + other, mask=there, other=0.0).to(tl.float64)
        same = (group[:, None] == tl.load(group_ptr + first + other, mask=there, other=0)[None, :]) & there[None, :]
        d = tl.where(same, r[None, :] - mean[:, None], 0.0)
        squares += tl.sum(d * d, axis=1)
        batch_d = tl.where(there, r - batch_mean, 0.0)
        batch_squares += batch_d * batch_d
    advantage = reward - mean
    if baseline == LEAVE_ONE_OUT:
        advantage = advantage * (size / tl.maximum(size - 1.0, 1.0))  # R - (n mean - R) / (n - 1)
    elif baseline == NO_BASELINE:
        advantage = reward
    if scale == GROUP_STD:
        advantage = advantage / (tl.sqrt(squares / tl.maximum(size - degrees_lost, 1.0)) + eps)
    elif scale == BATCH_STD:
        variance = tl.sum(batch_squares, axis=0) / tl.maximum(num_samples - degrees_lost, 1)
        advantage = advantage / (tl.sqrt(variance) + eps)
    advantage = tl.where(largest == smallest, 0.0, advantage)
    # the largest and the smallest leave NaN out, and without a baseline the others' rewards would stand
    advantage = tl.where(total - total == 0.0, advantage, float("nan"))
    tl.store(out_ptr + own, advantage.to(tl.float32), mask=inside)


def launch(rewards_N: Tensor, group_N: Tensor, baseline: str, scale: str, unbiased: bool, eps: float) -> Tensor:
    """Advantage [N], fp32."""
    out_N = torch.empty(rewards_N.shape, dtype=torch.float32, device=rewards_N.device)
    num_samples = len(rewards_N)
    if num_samples:
        with on_device(rewards_N):
            _group_advantage_kernel[(triton.cdiv(num_samples, BLOCK_I),)](
                rewards_N.contiguous(),
                group_N.contiguous(),
                out_N,
                num_samples,
                BASELINES.index(baseline),
                SCALES.index(scale),
                int(unbiased),
                eps,
                BLOCK_OWN=BLOCK_I,
                BLOCK_OTHER=BLOCK_J,
                num_warps=NUM_WARPS,
                enable_fp_fusion=True,
            )
    return out_N
