"""Policy loss from hidden states and the head: `linear_logprob` and `grpo_loss` in one call; logits never exist."""

# T packed tokens, A the unmasked ones, N sequences, D model, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor

from r1fast.kernels.checks import describe
from r1fast.kernels.grpo_loss import PolicyLoss, grpo_loss, grpo_loss_reference
from r1fast.kernels.linear_logprob import linear_logprob, linear_logprob_reference


def linear_grpo_loss_reference(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    advantage_N: Tensor,
    cu_seqlens: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    old_logp_T: Tensor | None = None,
    ref_logp_T: Tensor | None = None,
    rollout_logp_T: Tensor | None = None,
    log_kept_mass_T: Tensor | None = None,
    mask_T: Tensor | None = None,
    denominator: float | Tensor,
    options: PolicyLoss,
) -> Tensor:
    """The definition in eager torch: the loss alone, differentiable in hidden, weight and bias, fp64 stays fp64."""
    tokens = linear_logprob_reference(
        hidden_TD, weight_VD, targets_T, bias_V=bias_V, temperature=temperature, softcap=softcap, entropy=True
    )
    return grpo_loss_reference(
        tokens.logp,
        advantage_N,
        cu_seqlens,
        old_logp_T=old_logp_T,
        ref_logp_T=ref_logp_T,
        rollout_logp_T=rollout_logp_T,
        log_kept_mass_T=log_kept_mass_T,
        entropy_T=tokens.entropy,
        mask_T=mask_T,
        denominator=denominator,
        options=options,
    )


def linear_grpo_loss(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    advantage_N: Tensor,
    cu_seqlens: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    memory_budget_bytes: int | None = None,
    old_logp_T: Tensor | None = None,
    ref_logp_T: Tensor | None = None,
    rollout_logp_T: Tensor | None = None,
    log_kept_mass_T: Tensor | None = None,
    mask_T: Tensor | None = None,
    denominator: float | Tensor,
    options: PolicyLoss,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss (0-dim) and metrics, entropy among them; differentiable in hidden, weight and bias.

    Arguments are those of `linear_logprob` and `grpo_loss`, errors too. Masked tokens never reach a product: their
    hidden states may hold NaN, their targets must be in range all the same.
    """
    rows_A = None
    if mask_T is not None:
        if mask_T.shape != targets_T.shape or mask_T.dtype != torch.bool or len(hidden_TD) != len(targets_T):
            raise ValueError(
                f"mask must be bool, and mask, targets and hidden of as many tokens: {describe(mask_T)}, "
                f"{describe(targets_T)}, {describe(hidden_TD)}"
            )
        rows_A = mask_T.nonzero()[:, 0]
        hidden_TD, targets_T = hidden_TD.index_select(0, rows_A), targets_T[rows_A]
        temperature = temperature[rows_A] if isinstance(temperature, Tensor) else temperature
    logp_T, _, entropy_T = linear_logprob(
        hidden_TD,
        weight_VD,
        targets_T,
        bias_V=bias_V,
        temperature=temperature,
        softcap=softcap,
        entropy=True,
        memory_budget_bytes=memory_budget_bytes,
    )
    assert entropy_T is not None
    if mask_T is not None and rows_A is not None:
        empty_T = logp_T.new_zeros(len(mask_T))
        logp_T, entropy_T = (empty_T.index_copy(0, rows_A, values_A) for values_A in (logp_T, entropy_T))
    return grpo_loss(
        logp_T,
        advantage_N,
        cu_seqlens,
        old_logp_T=old_logp_T,
        ref_logp_T=ref_logp_T,
        rollout_logp_T=rollout_logp_T,
        log_kept_mass_T=log_kept_mass_T,
        entropy_T=entropy_T,
        mask_T=mask_T,
        denominator=denominator,
        options=options,
    )
