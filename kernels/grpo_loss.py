"""Policy loss per token from log-probs, and its gradient in the same pass (DeepSeekMath eq. 3 and its descendants).

    loss = sum over unmasked tokens of w (c objective + kl_coef KL - entropy_coef H) / denominator
    x = logp - old_logp;  ratio = exp(s), s = x (token), mean of x over the sequence (sequence), its sum (sequence_sum)
    w = 1 / (unmasked tokens of the sequence) for sequence_mean, else 1;  c = the rollout correction's weight

The loss is separable over tokens once a sequence's sums are known, so forward knows d loss / d logp.
"""

# T packed tokens, N sequences, A advantage

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1fast.kernels.checks import describe
from r1fast.kernels.policy_loss import PolicyLoss
from r1fast.kernels.segments import Segments, check_segments

__all__ = ["K3_LINEAR_FROM", "PolicyLoss", "grpo_loss", "grpo_loss_reference"]

# k3 and its gradient 1 - exp(d) go on as a straight line above this d = ref - logp: clamping all of d would give
# gradient 0 where the pull must be strongest, clamping the exponential alone a gradient of the wrong sign. So would the
# line times the ratio; but ratio x k3 = exp(ref - old) - ratio (1 + d), where only a constant can overflow.
K3_LINEAR_FROM = 20.0
_K3_SLOPE = math.expm1(K3_LINEAR_FROM)
_EXP_MAX = 80.0  # exp of it is finite in fp32

_Tokens = dict[str, Tensor | None]  # per-token inputs [T] by name


def grpo_loss_reference(
    logp_T: Tensor,
    advantage_N: Tensor,
    cu_seqlens: Tensor,
    *,
    old_logp_T: Tensor | None = None,
    ref_logp_T: Tensor | None = None,
    rollout_logp_T: Tensor | None = None,
    log_kept_mass_T: Tensor | None = None,
    entropy_T: Tensor | None = None,
    mask_T: Tensor | None = None,
    denominator: float | Tensor,
    options: PolicyLoss,
) -> Tensor:
    """The definition in eager torch, differentiated by autograd: a loop over sequences, any device, fp64 stays fp64."""
    bounds = cu_seqlens.tolist()
    total = torch.zeros((), dtype=logp_T.dtype, device=logp_T.device)
    for n, (start, stop) in enumerate(pairwise(bounds)):
        keep = torch.arange(start, stop, device=logp_T.device)
        if mask_T is not None:
            keep = keep[mask_T[start:stop]]
        if not len(keep):
            continue
        logp = logp_T[keep]
        old = logp.detach() if old_logp_T is None else old_logp_T[keep].detach()
        term = _reference_objective(logp, old, advantage_N[n].detach(), options)
        if options.correction != "none":
            assert rollout_logp_T is not None
            log_weight = old - rollout_logp_T[keep].detach()
            if log_kept_mass_T is not None:
                log_weight = log_weight + log_kept_mass_T[keep].detach()
            if options.correction_level == "sequence":
                log_weight = log_weight.sum().expand_as(log_weight)
            weight, cap = log_weight.exp(), options.correction_cap
            inside = (weight >= 1 / cap) & (weight <= cap)
            term = term * (
                weight.clamp(max=cap) if options.correction == "truncate" else torch.where(inside, weight, 0)
            )
        if options.reads_reference:
            assert ref_logp_T is not None
            term = term + options.kl_coef * _reference_kl(logp, old, ref_logp_T[keep].detach(), options)
        if options.entropy_coef:
            assert entropy_T is not None
            term = term - options.entropy_coef * entropy_T[keep]
        total = total + (term.mean() if options.aggregate == "sequence_mean" else term.sum())
    return total / denominator


def _reference_kl(logp: Tensor, old: Tensor, ref: Tensor, options: PolicyLoss) -> Tensor:
    d = ref - logp
    if options.kl == "k2":
        return d.square() / 2
    near = d.clamp(max=K3_LINEAR_FROM)
    k3, far = torch.expm1(near) - near, _K3_SLOPE - K3_LINEAR_FROM + _K3_SLOPE * (d - K3_LINEAR_FROM)
    if options.kl == "weighted_k3":
        ratio = (logp - old).exp()
        k3, far = ratio * k3, (ref - old).clamp(max=_EXP_MAX).exp() - ratio * (1 + d)
    return torch.where(d > K3_LINEAR_FROM, far, k3)


def _reference_objective(logp: Tensor, old: Tensor, advantage: Tensor, options: PolicyLoss) -> Tensor:
    if options.objective == "nll":
        return -logp
    if options.objective == "reinforce":
        return -advantage * logp
    x = logp - old
    if options.level != "token":
        x = (x.mean() if options.level == "sequence" else x.sum()).expand_as(x)
    ratio = x.exp()  # pi_theta/pi_old, DeepSeekMath eq. 3
    if options.objective == "cispo":
        return -ratio.detach().clamp(max=1 + options.clip_high) * advantage * logp
    clipped = ratio.clamp(1 - options.clip_low, 1 + options.clip_high)
    if options.ratio_bound is not None and advantage < 0:
        ratio = ratio.clamp(max=options.ratio_bound)
    return -torch.minimum(ratio * advantage, clipped * advantage)


class _GrpoLoss(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any, logp_T: Tensor, entropy_T: Tensor | None, loss: Tensor, dlogp_T: Tensor, dentropy_T: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(dlogp_T, dentropy_T)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dlogp_T, dentropy_T = ctx.saved_tensors
        return grad * dlogp_T, None if dentropy_T is None else grad * dentropy_T, None, None, None


def grpo_loss(
    logp_T: Tensor,
    advantage_N: Tensor,
    cu_seqlens: Tensor,
    *,
    old_logp_T: Tensor | None = None,
    ref_logp_T: Tensor | None = None,
    rollout_logp_T: Tensor | None = None,
    log_kept_mass_T: Tensor | None = None,
    entropy_T: Tensor | None = None,
    mask_T: Tensor | None = None,
    denominator: float | Tensor,
    options: PolicyLoss,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss (0-dim) and metrics of packed sequences; differentiable in `logp_T` and, with a bonus, `entropy_T`.

    Floating tensors: fp32 or fp64 [T] (advantage [N]); all but the two above are constants. `cu_seqlens`: integer
    [N + 1] from 0 to T; empty sequences are legal. `mask_T`: bool, True where a token counts; what other entries hold,
    NaN too, is not read. `old_logp_T` None means ratio 1 and gradient -A; `rollout_logp_T` and `log_kept_mass_T` (log
    of the mass that top-p kept) feed the correction and the gap; `denominator` > 0 is global and comes from outside,
    so that neither micro-batches nor ranks change a gradient.

    Metrics are detached 0-dim tensors whose suffix names their reduction (_sum, _count, _min, _max), ratios being left
    to the caller; without an own count, sums run over `tokens_count` tokens. `loss_sum`, `loss_count` (sum of w term
    and of w; not over the denominator), `tokens_count`, `entropy_sum` if there is entropy, `kl_sum` if the KL is on,
    `logp_gap_abs_sum/_max` (old or else current, against the rollout's) if there is a rollout, with a correction
    `correction_weight_sum` and `correction_clipped_sum` (tokens capped or masked); but for nll
    `ratio_sum/_min/_max`, and where there is a clip `clip_low_sum`, `clip_high_sum`, `clip_dual_sum` (tokens).

    Raises ValueError for shapes, dtypes and devices that do not fit, and for an input that an option needs.
    """
    tokens: _Tokens = {"old_logp": old_logp_T, "ref_logp": ref_logp_T, "rollout_logp": rollout_logp_T}
    tokens |= {"log_kept_mass": log_kept_mass_T, "entropy": entropy_T}
    _check(logp_T, advantage_N, cu_seqlens, tokens, mask_T, denominator, options)
    with torch.no_grad():
        batch = _Batch(Segments(cu_seqlens, mask_T, logp_T), logp_T, advantage_N, tokens)
        loss, metrics, dlogp_T, dentropy_T = _evaluate(batch, denominator, options)
    if dentropy_T is None:
        entropy_T = None
    return _GrpoLoss.apply(logp_T, entropy_T, loss, dlogp_T, dentropy_T), metrics  # type: ignore[no-untyped-call]


class _Batch:
    """Inputs with 0 in masked places, so that nothing there can reach a sum."""

    def __init__(self, segments: Segments, logp_T: Tensor, advantage_N: Tensor, tokens: _Tokens) -> None:
        self.segments = segments
        self.logp_T = segments.masked(logp_T.detach())
        self.advantage_T = segments.masked(segments.spread(advantage_N.to(logp_T.dtype)))
        clean = {name: None if x_T is None else segments.masked(x_T.to(logp_T.dtype)) for name, x_T in tokens.items()}
        self.ref_T, self.rollout_T = clean["ref_logp"], clean["rollout_logp"]
        self.kept_T, self.entropy_T = clean["log_kept_mass"], clean["entropy"]
        self.old_T = self.logp_T if clean["old_logp"] is None else clean["old_logp"]
        self.x_T = self.logp_T - self.old_T


def _evaluate(
    batch: _Batch, denominator: float | Tensor, options: PolicyLoss
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


def _objective(batch: _Batch, options: PolicyLoss, metrics: dict[str, Tensor]) -> tuple[Tensor, Tensor, bool]:
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


def _kl(batch: _Batch, options: PolicyLoss) -> tuple[Tensor, Tensor]:
    """KL estimate per token and its derivative by logp."""
    assert batch.ref_T is not None
    d_T = batch.ref_T - batch.logp_T
    if options.kl == "k2":
        return d_T.square() / 2, -d_T
    near_T = d_T.clamp(max=K3_LINEAR_FROM)
    expm1_T = torch.expm1(near_T)  # exp(d) - d - 1 would be 0 in fp32 at d = 1e-4, where k3 is 5e-9
    k3_T = expm1_T - near_T
    if options.kl == "k3":
        return k3_T + _K3_SLOPE * (d_T - near_T), -expm1_T
    ratio_T = batch.x_T.exp()
    far_T = (batch.ref_T - batch.old_T).clamp(max=_EXP_MAX).exp() - ratio_T * (1 + d_T)
    return torch.where(d_T > K3_LINEAR_FROM, far_T, ratio_T * k3_T), -ratio_T * d_T


def _correction(batch: _Batch, options: PolicyLoss, metrics: dict[str, Tensor]) -> Tensor | None:
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


def _check(
    logp_T: Tensor,
    advantage_N: Tensor,
    cu_seqlens: Tensor,
    tokens: _Tokens,
    mask_T: Tensor | None,
    denominator: float | Tensor,
    options: PolicyLoss,
) -> None:
    if logp_T.dim() != 1 or logp_T.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"logp must be float32 [T], it is {describe(logp_T)}; bf16 log-probs make ratios noise")
    if advantage_N.dim() != 1 or not advantage_N.is_floating_point() or advantage_N.device != logp_T.device:
        raise ValueError(f"advantage must be floating [N] on {logp_T.device}, it is {describe(advantage_N)}")
    check_segments(cu_seqlens, len(advantage_N), len(logp_T), logp_T.device)
    for name, value_T in tokens.items():
        if value_T is not None and (
            value_T.shape != logp_T.shape or not value_T.is_floating_point() or value_T.device != logp_T.device
        ):
            raise ValueError(f"{name} must be floating and match logp, {describe(logp_T)}; it is {describe(value_T)}")
    if mask_T is not None and (
        mask_T.shape != logp_T.shape or mask_T.dtype != torch.bool or mask_T.device != logp_T.device
    ):
        raise ValueError(f"mask must be bool and match logp, {describe(logp_T)}; it is {describe(mask_T)}")
    if not isinstance(denominator, Tensor) and not (denominator > 0 and math.isfinite(denominator)):
        raise ValueError(f"denominator = {denominator} must be positive and finite: the global count of the aggregate")
    needs = {
        "ref_logp": (options.reads_reference, f"kl = {options.kl!r}"),
        "rollout_logp": (options.correction != "none", f"correction = {options.correction!r}"),
        "entropy": (options.entropy_coef > 0, f"entropy_coef = {options.entropy_coef}"),
    }
    for name, (needed, option) in needs.items():
        if needed and tokens[name] is None:
            raise ValueError(f"{option} needs {name}, which is None; pass it or turn the option off")
