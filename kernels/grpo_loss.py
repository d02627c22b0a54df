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

from r1fast.kernels.checks import describe, uses_triton
from r1fast.kernels.library import op
from r1fast.kernels.policy_loss import VALUES, PolicyLoss, decode
from r1fast.kernels.segments import Segments, check_offsets, check_segments
from r1fast.kernels.token_losses import EXP_MAX, K3_LINEAR_FROM, K3_SLOPE, TokenBatch, Tokens
from r1fast.kernels.token_losses import evaluate as evaluate_tokens

__all__ = ["K3_LINEAR_FROM", "PolicyLoss", "grpo_loss", "grpo_loss_reference"]


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
    total = logp_T[:0].sum()  # 0, with a gradient: of nothing, where no token counts
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
    k3, far = torch.expm1(near) - near, K3_SLOPE - K3_LINEAR_FROM + K3_SLOPE * (d - K3_LINEAR_FROM)
    if options.kl == "weighted_k3":
        ratio = (logp - old).exp()
        k3, far = ratio * k3, (ref - old).clamp(max=EXP_MAX).exp() - ratio * (1 + d)
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


def _fake_evaluate(logp_T: Tensor, *more: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    has_bonus = decode(more[-2]).entropy_coef > 0
    return (
        logp_T.new_empty(()),
        logp_T.new_empty(len(VALUES)),
        torch.empty_like(logp_T),
        torch.empty_like(logp_T) if has_bonus else logp_T.new_empty(0),
    )


@op(
    "grpo_loss_evaluate(Tensor logp, Tensor advantage, Tensor cu_seqlens, Tensor? old_logp, Tensor? ref_logp, "
    "Tensor? rollout_logp, Tensor? log_kept_mass, Tensor? entropy, Tensor? mask, Tensor? length, "
    "Tensor? denominator_tensor, float denominator, str options, bool check) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_evaluate,
)
def evaluate(
    logp_T: Tensor,
    advantage_N: Tensor,
    cu_seqlens: Tensor,
    old_logp_T: Tensor | None,
    ref_logp_T: Tensor | None,
    rollout_logp_T: Tensor | None,
    log_kept_mass_T: Tensor | None,
    entropy_T: Tensor | None,
    mask_T: Tensor | None,
    length_N: Tensor | None,
    denominator_tensor: Tensor | None,
    denominator: float,
    options: str,
    check: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss (0-dim), VALUES [M], d loss / d logp, d loss / d entropy (empty without a bonus).

    `length_N`: unmasked tokens of each sequence, where only a part of it is here (not for objectives of a sequence).
    `denominator` counts where there is no tensor.
    """
    check_offsets(cu_seqlens, len(logp_T), check)
    chosen = decode(options)
    tokens: Tokens = {"old_logp": old_logp_T, "ref_logp": ref_logp_T, "rollout_logp": rollout_logp_T}
    tokens |= {"log_kept_mass": log_kept_mass_T, "entropy": entropy_T}
    total = denominator if denominator_tensor is None else denominator_tensor.to(logp_T.device, logp_T.dtype)
    if uses_triton(logp_T):
        from r1fast.kernels.grpo_loss_kernels import launch

        loss, values_M, dlogp_T, dentropy_T = launch(
            logp_T, advantage_N, cu_seqlens, tokens, mask_T, length_N, total, chosen
        )
    else:
        batch = TokenBatch(Segments(cu_seqlens, mask_T, logp_T, length_N), logp_T, advantage_N, tokens)
        loss, metrics, dlogp_T, dentropy_T = evaluate_tokens(batch, total, chosen)
        zero = torch.zeros_like(loss)
        values_M = torch.stack([metrics.get(name, zero) for name in VALUES])
    return loss, values_M, dlogp_T, logp_T.new_empty(0) if dentropy_T is None else dentropy_T


class _GrpoLoss(torch.autograd.Function):
    """Forward knows the gradients already; it makes the loss itself, so that nothing needs to be copied."""

    @staticmethod
    def forward(
        ctx: Any, logp_T: Tensor, entropy_T: Tensor | None, tokens: tuple[Tensor | None, ...], *more: Any
    ) -> tuple[Tensor, Tensor]:
        advantage_N, cu_seqlens, mask_T, denominator_tensor, denominator, options, check = more
        loss, values_M, *gradients = evaluate(
            logp_T,
            advantage_N,
            cu_seqlens,
            *tokens,
            entropy_T,
            mask_T,
            None,
            denominator_tensor,
            denominator,
            options,
            check,
        )
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(values_M)
        ctx.set_materialize_grads(False)
        return loss, values_M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:2] if grad is not None else (False, False)
        found = (grad * x_T if need else None for x_T, need in zip(ctx.saved_tensors, needs, strict=True))
        return *found, *[None] * 8


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
    check: bool = False,
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

    Raises ValueError for shapes, dtypes and devices that do not fit, for an input that an option needs, and on the
    CPU for offsets that do not rise from 0 to T (on CUDA values are read only with `check`, which waits for the GPU).
    """
    tokens: Tokens = {"old_logp": old_logp_T, "ref_logp": ref_logp_T, "rollout_logp": rollout_logp_T}
    tokens |= {"log_kept_mass": log_kept_mass_T, "entropy": entropy_T}
    if logp_T.dim() != 1 or logp_T.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"logp must be float32 [T], it is {describe(logp_T)}; bf16 log-probs make ratios noise")
    if options.entropy_coef and entropy_T is None:
        raise ValueError(
            f"entropy_coef = {options.entropy_coef} needs entropy, which is None; pass it or turn the option off"
        )
    check_loss(logp_T.shape[0], logp_T.device, advantage_N, cu_seqlens, tokens, mask_T, denominator, options)
    *given, entropy_T = (None if x_T is None else x_T.detach() for x_T in tokens.values())
    divisor = (denominator.detach(), 1.0) if isinstance(denominator, Tensor) else (None, float(denominator))
    loss, values_M = _GrpoLoss.apply(  # type: ignore[no-untyped-call]
        logp_T,
        tokens["entropy"] if options.entropy_coef else entropy_T,
        tuple(given),
        advantage_N.detach(),
        cu_seqlens,
        mask_T,
        *divisor,
        options.encode(),
        check,
    )
    return loss, report(values_M, options, entropy=entropy_T is not None, rollout=rollout_logp_T is not None)


def report(values_M: Tensor, options: PolicyLoss, *, entropy: bool, rollout: bool) -> dict[str, Tensor]:
    """The metrics, 0-dim views."""
    return {name: values_M[VALUES.index(name)] for name in options.reported(entropy=entropy, rollout=rollout)}


def check_loss(
    num_tokens: int,
    device: torch.device,
    advantage_N: Tensor,
    cu_seqlens: Tensor,
    tokens: Tokens,
    mask_T: Tensor | None,
    denominator: float | Tensor,
    options: PolicyLoss,
) -> None:
    """Raises ValueError for what does not fit, and for an input that an option needs."""
    if advantage_N.dim() != 1 or not advantage_N.is_floating_point() or advantage_N.device != device:
        raise ValueError(f"advantage must be floating [N] on {device}, it is {describe(advantage_N)}")
    check_segments(cu_seqlens, advantage_N.shape[0], device)
    for name, value_T in tokens.items():
        if value_T is not None and (
            value_T.shape != (num_tokens,) or not value_T.is_floating_point() or value_T.device != device
        ):
            raise ValueError(f"{name} must be floating [{num_tokens}] on {device}; it is {describe(value_T)}")
    if mask_T is not None and (mask_T.shape != (num_tokens,) or mask_T.dtype != torch.bool or mask_T.device != device):
        raise ValueError(f"mask must be bool [{num_tokens}] on {device}; it is {describe(mask_T)}")
    if isinstance(denominator, Tensor):
        if denominator.dim():
            raise ValueError(f"denominator must be a number or a tensor without dimensions: {describe(denominator)}")
    elif not (denominator > 0 and math.isfinite(denominator)):
        raise ValueError(f"denominator = {denominator} must be positive and finite: the global count of the aggregate")
    needs = {
        "ref_logp": (options.reads_reference, f"kl = {options.kl!r}"),
        "rollout_logp": (options.correction != "none", f"correction = {options.correction!r}"),
    }
    for name, (needed, option) in needs.items():
        if needed and tokens[name] is None:
            raise ValueError(f"{option} needs {name}, which is None; pass it or turn the option off")
