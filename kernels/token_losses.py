"""The policy loss's terms and gradients per token in plain torch: the path without Triton. Formulas: `grpo_loss`."""

# T packed tokens, N sequences, A advantage

from __future__ import annotations

import math

import torch
from torch import Tensor

from r1fast.kernels.policy_loss import PolicyLoss
from r1fast.kernels.segments import Segments

# k3 and its gradient 1 - exp(d) go on as a straight line above this d = ref - logp: clamping all of d would give
# gradient 0 where the pull must be strongest, clamping the exponential alone a gradient of the wrong sign. So would the
# line times the ratio; but ratio x k3 = exp(ref - old) - ratio (1 + d), where only a constant can overflow.
K3_LINEAR_FROM = 20.0
K3_SLOPE = math.expm1(K3_LINEAR_FROM)
EXP_MAX = 80.0  # exp of it is finite in fp32


Tokens = dict[str, Tensor | None]
"""Per-token inputs [T] by name."""


class TokenBatch:
    """Inputs with 0 in masked places, so that nothing there can reach a sum."""

    def __init__(self, segments: Segments, logp_T: Tensor, advantage_N: Tensor, tokens: Tokens) -> None:
        self.segments = segments
        self.logp_T = segments.masked(logp_T.detach())
        self.advantage_T = segments.masked(segments.spread(advantage_N.to(logp_T.dtype)))
        clean = {name: None if x_T is None else segments.masked(x_T.to(logp_T.dtype)) for name, x_T in tokens.items()}
        self.ref_T, self.rollout_T = clean["ref_logp"], clean["rollout_logp"]
        self.kept_T, self.entropy_T = clean["log_kept_mass"], clean["entropy"]
        self.old_T = self.logp_T if clean["old_logp"] is None else clean["old_logp"]
        self.x_T = self.logp_T - self.old_T


def evaluate(
    batch: TokenBatch, denominator: float | Tensor, options: PolicyLoss
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor | None]:
    """Loss, metrics, d loss / d logp and d loss / d entropy (None without a bonus)."""
    segments = batch.segments
    metrics = {"tokens_count": segments.keep_T.sum()}
    weight_T = segments.keep_T
    if options.aggregate == "sequence_mean":
        weight_T = segments.masked(segments.spread(1 / segments.length_N))
    correction_T = _correction(batch, options, metrics)
    term_T, slope_T, by_sequence = _objective(batch, options, metrics)
    if correction_T is not None:
        term_T, slope_T = _times(correction_T, term_T), _times(correction_T, slope_T)
    gradient_T = segments.masked(weight_T * slope_T)
    if by_sequence:  # every token of a sequence moves the one ratio that all its tokens' terms share
        gradient_N = segments.sum_of_each(gradient_T)
        if options.level == "sequence":
            gradient_N = gradient_N / segments.length_N
        gradient_T = segments.spread(gradient_N)
    if options.reads_reference:
        kl_T, kl_slope_T = _kl(batch, options)
        metrics["kl_sum"] = segments.sum(kl_T)
        term_T = term_T + options.kl_coef * kl_T
        gradient_T = gradient_T + weight_T * (options.kl_coef * kl_slope_T)
    dentropy_T = None
    if batch.entropy_T is not None:
        metrics["entropy_sum"] = batch.entropy_T.sum()
        if options.entropy_coef:
            term_T = term_T - options.entropy_coef * batch.entropy_T
            dentropy_T = weight_T * (-options.entropy_coef) / denominator
    if batch.rollout_T is not None:
        gap_T = (batch.old_T - batch.rollout_T).abs()
        metrics["logp_gap_abs_sum"] = gap_T.sum()
        metrics["logp_gap_abs_max"] = segments.extreme(gap_T, 1)
    metrics["loss_sum"], metrics["loss_count"] = segments.sum(weight_T * term_T), weight_T.sum()
    return metrics["loss_sum"] / denominator, metrics, segments.masked(gradient_T) / denominator, dentropy_T


def _objective(batch: TokenBatch, options: PolicyLoss, metrics: dict[str, Tensor]) -> tuple[Tensor, Tensor, bool]:
    """Term per token, its derivative, and whether that is by the sequence's s instead of the token's logp."""
    segments, advantage_T, logp_T = batch.segments, batch.advantage_T, batch.logp_T
    if options.objective == "nll":
        return -logp_T, -torch.ones_like(logp_T), False
    s_T = batch.x_T
    if options.level != "token":
        s_N = segments.sum_of_each(batch.x_T)
        s_T = segments.spread(s_N / segments.length_N if options.level == "sequence" else s_N)
    ratio_T = s_T.exp()  # pi_theta/pi_old, DeepSeekMath eq. 3
    metrics["ratio_sum"] = segments.sum(ratio_T)
    metrics["ratio_min"], metrics["ratio_max"] = segments.extreme(ratio_T, -1), segments.extreme(ratio_T, 1)
    if options.objective == "reinforce":
        return _times(advantage_T, -logp_T), -advantage_T, False
    low, high = 1 - options.clip_low, 1 + options.clip_high
    if options.objective == "cispo":
        metrics["clip_high_sum"] = segments.sum(ratio_T > high)
        slope_T = _times(advantage_T, -ratio_T.clamp(max=high))
        return _times(slope_T, logp_T), slope_T, False
    # Strict: on the edge itself the gradient passes, as torch.clamp's does.
    too_low_T = (advantage_T < 0) & (ratio_T < low)
    too_high_T = (advantage_T > 0) & (ratio_T > high)
    metrics["clip_low_sum"] = segments.sum(too_low_T)
    metrics["clip_high_sum"] = segments.sum(too_high_T)
    effective_T = torch.where(too_low_T, low, torch.where(too_high_T, high, ratio_T))
    stopped_T = too_low_T | too_high_T
    if options.ratio_bound is not None:
        too_far_T = (advantage_T < 0) & (ratio_T > options.ratio_bound)
        metrics["clip_dual_sum"] = segments.sum(too_far_T)
        effective_T = torch.where(too_far_T, options.ratio_bound, effective_T)
        stopped_T = stopped_T | too_far_T
    term_T = _times(advantage_T, -effective_T)
    return term_T, torch.where(stopped_T, 0.0, term_T), options.level != "token"


def _kl(batch: TokenBatch, options: PolicyLoss) -> tuple[Tensor, Tensor]:
    """KL estimate per token and its derivative by logp."""
    assert batch.ref_T is not None
    d_T = batch.ref_T - batch.logp_T
    if options.kl == "k2":
        return d_T.square() / 2, -d_T
    near_T = d_T.clamp(max=K3_LINEAR_FROM)
    expm1_T = torch.expm1(near_T)  # exp(d) - d - 1 would be 0 in fp32 at d = 1e-4, where k3 is 5e-9
    k3_T = expm1_T - near_T
    if options.kl == "k3":
        return k3_T + K3_SLOPE * (d_T - near_T), -expm1_T
    ratio_T = batch.x_T.exp()
    far_T = (batch.ref_T - batch.old_T).clamp(max=EXP_MAX).exp() - ratio_T * (1 + d_T)
    return torch.where(d_T > K3_LINEAR_FROM, far_T, ratio_T * k3_T), -ratio_T * d_T


def _correction(batch: TokenBatch, options: PolicyLoss, metrics: dict[str, Tensor]) -> Tensor | None:
    """Weight per token for sampling from another distribution than the old policy's (TIS, IcePop)."""
    if options.correction == "none":
        return None
    assert batch.rollout_T is not None
    segments = batch.segments
    log_weight_T = batch.old_T - batch.rollout_T
    if batch.kept_T is not None:
        log_weight_T = log_weight_T + batch.kept_T
    if options.correction_level == "sequence":
        log_weight_T = segments.spread(segments.sum_of_each(log_weight_T))
    raw_T = log_weight_T.exp()
    cap = options.correction_cap
    if options.correction == "truncate":
        clipped_T, weight_T = raw_T > cap, raw_T.clamp(max=cap)
    else:
        clipped_T = (raw_T > cap) | (raw_T < 1 / cap)
        weight_T = torch.where(clipped_T, 0.0, raw_T)
    metrics["correction_weight_sum"] = segments.sum(weight_T)
    metrics["correction_clipped_sum"] = segments.sum(clipped_T)
    return weight_T


def _times(factor_T: Tensor, value_T: Tensor) -> Tensor:
    """The product, 0 where the factor is 0: also of an infinite ratio."""
    return torch.where(factor_T == 0, 0.0, factor_T * value_T)
