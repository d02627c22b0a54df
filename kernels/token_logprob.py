"""Log-prob, log-sum-exp and entropy of one target per token, from logits: z = softcap(logits) / temperature.

lse = logsumexp(z),  logp = z_target - lse,  H = lse - sum_j p_j z_j,  p = softmax(z)
dz_j = g (1[j = target] - p_j) + l p_j - h p_j ((z_j - lse) + H)     with g, l, h the gradients of logp, lse, H
"""

# T packed tokens, V vocabulary

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1fast.kernels.checks import DTYPES, accumulator, check_scaling, check_targets, check_values, describe, uses_triton
from r1fast.kernels.library import op
from r1fast.kernels.rows import RowGrads, Rows, Scaling, blocks


class TokenLogprob(NamedTuple):
    """Each [T], fp32 (fp64 for fp64 inputs); `entropy` in nats, None unless asked for."""

    logp: Tensor
    lse: Tensor
    entropy: Tensor | None


def token_logprob_reference(
    logits_TV: Tensor,
    targets_T: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
) -> TokenLogprob:
    """The definition in eager torch: differentiable in everything, any device, fp64 stays fp64."""
    z_TV = logits_TV.to(accumulator(logits_TV.dtype))
    if softcap is not None:
        z_TV = softcap * torch.tanh(z_TV / softcap)
    z_TV = z_TV / (temperature[:, None] if isinstance(temperature, Tensor) else temperature)
    log_p_TV = torch.log_softmax(z_TV, dim=1)
    logp_T = log_p_TV.gather(1, targets_T.long()[:, None])[:, 0]
    entropy_T = None
    if entropy:
        p_TV = log_p_TV.exp()
        entropy_T = -(p_TV * torch.where(p_TV > 0, log_p_TV, 0.0)).sum(1)
    return TokenLogprob(logp_T, torch.logsumexp(z_TV, dim=1), entropy_T)


def _fake_forward(
    logits_TV: Tensor,
    targets_T: Tensor,
    temperature_T: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    check: bool,
) -> tuple[Tensor, ...]:
    return Rows.fake_outputs(logits_TV.shape[0], logits_TV, entropy=entropy)


@op(
    "token_logprob_forward(Tensor logits, Tensor targets, Tensor? temperature_T, float temperature, float? softcap, "
    "bool entropy, bool check) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_forward,
)
def _forward(
    logits_TV: Tensor,
    targets_T: Tensor,
    temperature_T: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    check: bool,
) -> tuple[Tensor, ...]:
    """See Rows.outputs."""
    check_values(targets_T, logits_TV.shape[1], temperature_T, check)
    rows = Rows.empty(len(logits_TV), logits_TV, entropy=entropy)
    scaling = Scaling.of(temperature, temperature_T, softcap, rows.logp.dtype)
    if uses_triton(logits_TV):
        from r1fast.kernels.token_logprob_kernels import put_rows

        put_rows(rows, logits_TV, targets_T, scaling)
    else:
        for block in blocks(logits_TV.shape[0], logits_TV.shape[1], logits_TV.device):
            logits_BV = logits_TV[block].to(rows.logp.dtype, copy=True)
            rows.select(block).put(logits_BV, targets_T[block], scaling.select(block))
    return rows.outputs(scaling)


def _fake_backward(out_TV: Tensor, *_: Any) -> None:
    return None


@op(
    "token_logprob_backward(Tensor(a!) out, Tensor logits, Tensor targets, Tensor? temperature_T, float temperature, "
    "float? softcap, Tensor row_max, Tensor log_sum, Tensor? entropy, Tensor? dlogp, Tensor? dlse, Tensor? dentropy) "
    "-> ()",
    fake=_fake_backward,
)
def _backward(
    out_TV: Tensor,
    logits_TV: Tensor,
    targets_T: Tensor,
    temperature_T: Tensor | None,
    temperature: float,
    softcap: float | None,
    row_max_T: Tensor,
    log_sum_T: Tensor,
    entropy_T: Tensor | None,
    dlogp_T: Tensor | None,
    dlse_T: Tensor | None,
    dentropy_T: Tensor | None,
) -> None:
    """The gradient of the logits into `out_TV`, which may be the logits."""
    rows = Rows(row_max_T, row_max_T, log_sum_T, entropy_T)  # logp is not read
    scaling = Scaling.of(temperature, temperature_T, softcap, log_sum_T.dtype)
    row_grads = RowGrads(dlogp_T, dlse_T, dentropy_T)
    if uses_triton(logits_TV):
        from r1fast.kernels.token_logprob_kernels import put_gradients

        put_gradients(out_TV, logits_TV, targets_T, rows, row_grads, scaling)
        return
    inactive_T = ~row_grads.active(rows)
    for block in blocks(logits_TV.shape[0], logits_TV.shape[1], logits_TV.device):
        logits_BV = logits_TV[block].to(log_sum_T.dtype, copy=True)
        row_grads.select(block).apply_(logits_BV, targets_T[block], rows.select(block), scaling.select(block))
        out_TV[block] = logits_BV.masked_fill_(inactive_T[block, None], 0.0)


class _TokenLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_TV: Tensor,
        targets_T: Tensor,
        temperature: float | Tensor,
        softcap: float | None,
        entropy: bool,
        inplace_backward: bool,
        check: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        temperature_T = temperature if isinstance(temperature, Tensor) else None
        ctx.settings = (1.0 if isinstance(temperature, Tensor) else float(temperature), softcap)
        logp_T, lse_T, row_max_T, log_sum_T, entropy_T = _forward(
            logits_TV, targets_T, temperature_T, *ctx.settings, entropy, check
        )
        kept_entropy_T = entropy_T if entropy else None
        ctx.save_for_backward(logits_TV, targets_T, temperature_T, row_max_T, log_sum_T, kept_entropy_T)
        ctx.set_materialize_grads(False)
        ctx.inplace = inplace_backward
        return logp_T, lse_T, kept_entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits_TV, targets_T, temperature_T, row_max_T, log_sum_T, entropy_T = ctx.saved_tensors
        out_TV = logits_TV.detach() if ctx.inplace else torch.empty_like(logits_TV)
        _backward(out_TV, logits_TV, targets_T, temperature_T, *ctx.settings, row_max_T, log_sum_T, entropy_T, *grads)
        if ctx.inplace:  # a kernel's write is no new version by itself: a later reader of the logits would not raise
            torch.autograd.graph.increment_version(logits_TV)
        return out_TV, *[None] * 6


def token_logprob(
    logits_TV: Tensor,
    targets_T: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    inplace_backward: bool = False,
    check: bool = False,
) -> TokenLogprob:
    """Log-prob of each target, log-sum-exp and (if asked for) entropy; differentiable in the logits through all three.

    `logits_TV`: floating, any strides; the maths is fp32 whatever the dtype. `targets_T`: integers in [0, V). Soft
    cap first, then `temperature` (> 0; a number or a floating tensor [T], a constant for autograd). Nothing of size
    [T, V] is allocated except the gradient; `inplace_backward` saves that one, too: backward overwrites the logits, so
    backward runs once and a later reader of the logits raises.

    Raises ValueError for shapes, dtypes, devices and settings that do not fit, and on the CPU for a target out of
    range. On CUDA values are not read, for that would wait for the GPU: such a token's log-prob is NaN; `check` reads
    them there, too.
    """
    if logits_TV.dim() != 2 or logits_TV.dtype not in DTYPES or not logits_TV.shape[1]:
        raise ValueError(
            f"logits must be floating [T, V] of 16, 32 or 64 bits with V >= 1, they are {describe(logits_TV)}"
        )
    check_targets(targets_T, logits_TV.shape[0], logits_TV.device)
    check_scaling(temperature, softcap, logits_TV.shape[0], logits_TV.device)
    if inplace_backward and logits_TV.requires_grad and (logits_TV.is_leaf or not logits_TV.is_contiguous()):
        raise ValueError(
            "inplace_backward overwrites the logits with their gradient: they must be contiguous and not a leaf "
            f"(leaf: {logits_TV.is_leaf}, strides {logits_TV.stride()}); leave it off for these"
        )
    outputs = _TokenLogprob.apply(logits_TV, targets_T, temperature, softcap, entropy, inplace_backward, check)  # type: ignore[no-untyped-call]
    return TokenLogprob(*outputs)
