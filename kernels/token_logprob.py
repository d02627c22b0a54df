"""Log-prob, log-sum-exp and entropy of one target per token, from logits: z = softcap(logits) / temperature.

lse = logsumexp(z),  logp = z_target - lse,  H = lse - sum_j p_j z_j,  p = softmax(z)
dz_j = g (1[j = target] - p_j) + l p_j - h p_j ((z_j - lse) + H)     with g, l, h the gradients of logp, lse, H
"""

# T packed tokens, V vocabulary, B the rows of one block, which stays in the cache

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# exp(FLOOR) is 0 in every dtype here and 0 * FLOOR is 0, where 0 * -inf would be NaN.
FLOOR = -1e4


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
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        rows = Rows.empty(len(logits_TV), logits_TV, entropy=entropy)
        for block in blocks(len(logits_TV), logits_TV.shape[1], logits_TV.device):
            z_BV = logits_TV[block].to(rows.dtype, copy=True)
            scale_(z_BV, rows_of(temperature, block), softcap)
            rows.put(block, z_BV, targets_T[block])
        temperature_T = temperature if isinstance(temperature, Tensor) else None
        ctx.save_for_backward(logits_TV, targets_T, temperature_T, rows.row_max, rows.log_sum, rows.entropy)
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.softcap, ctx.inplace = temperature, softcap, inplace_backward
        return rows.logp, rows.lse, rows.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits_TV, targets_T, temperature_T, row_max_T, log_sum_T, entropy_T = ctx.saved_tensors
        temperature = ctx.temperature if temperature_T is None else temperature_T
        rows = Rows(None, row_max_T, log_sum_T, entropy_T)
        row_grads = RowGrads.of(grads, temperature, rows)
        # Through detach() the write still counts as a new version, so that a later reader of the logits raises.
        out_TV = logits_TV.detach() if ctx.inplace else logits_TV.new_empty(logits_TV.shape)
        for block in blocks(len(logits_TV), logits_TV.shape[1], logits_TV.device):
            z_BV = logits_TV[block].to(rows.dtype, copy=True)
            factor_BV = scale_(z_BV, rows_of(temperature, block), ctx.softcap, want_factor=True)
            row_grads.apply_(z_BV, block, targets_T[block], rows, factor_BV)
            # A row without a gradient may hold NaN, which must not become NaN x 0.
            out_TV[block] = z_BV.masked_fill_(~row_grads.active[block, None], 0.0)
        return out_TV, None, None, None, None, None


def token_logprob(
    logits_TV: Tensor,
    targets_T: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    inplace_backward: bool = False,
) -> TokenLogprob:
    """Log-prob of each target, log-sum-exp and (if asked for) entropy; differentiable in the logits through all three.

    `logits_TV`: floating, any strides; the maths is fp32 whatever the dtype. `targets_T`: integers in [0, V). Soft
    cap first, then `temperature` (> 0; a number or a floating tensor [T], a constant for autograd). Nothing of size
    [T, V] is allocated except the gradient; `inplace_backward` saves that one, too: backward overwrites the logits, so
    backward runs once and a later reader of the logits raises.

    Raises ValueError for shapes, dtypes, devices and settings that do not fit, and on the CPU for a target out of
    range (on CUDA values are not read).
    """
    if logits_TV.dim() != 2 or not logits_TV.is_floating_point() or not logits_TV.shape[1]:
        raise ValueError(f"logits must be floating [T, V] with V >= 1, they are {describe(logits_TV)}")
    check_targets(targets_T, len(logits_TV), logits_TV.shape[1], logits_TV.device)
    check_scaling(temperature, softcap, len(logits_TV), logits_TV.device)
    if inplace_backward and logits_TV.requires_grad and (logits_TV.is_leaf or not logits_TV.is_contiguous()):
        raise ValueError(
            "inplace_backward overwrites the logits with their gradient: they must be contiguous and not a leaf "
            f"(leaf: {logits_TV.is_leaf}, strides {logits_TV.stride()}); leave it off for these"
        )
    outputs = _TokenLogprob.apply(logits_TV, targets_T.long(), temperature, softcap, entropy, inplace_backward)  # type: ignore[no-untyped-call]
    return TokenLogprob(*outputs)


# What `linear_logprob` shares: the maths of one block of rows, in place on its fp32 logits, and the checks.


class Rows(NamedTuple):
    """Per-token results, and the two statistics that backward needs: lse = row_max + log_sum.

    They are kept apart because exp(z - lse) loses digits where |lse| is large, and exp(z - row_max) does not.
    """

    logp_or_none: Tensor | None
    row_max: Tensor
    log_sum: Tensor
    entropy: Tensor | None

    @classmethod
    def empty(cls, num_tokens: int, like: Tensor, *, entropy: bool) -> Rows:
        """Uninitialised, in the accumulator dtype of `like` and on its device."""
        dtype = accumulator(like.dtype)
        logp, row_max, log_sum, *more = (
            torch.empty(num_tokens, dtype=dtype, device=like.device) for _ in range(4 if entropy else 3)
        )
        return cls(logp, row_max, log_sum, more[0] if more else None)

    @property
    def dtype(self) -> torch.dtype:
        return self.row_max.dtype

    @property
    def logp(self) -> Tensor:
        assert self.logp_or_none is not None
        return self.logp_or_none

    @property
    def lse(self) -> Tensor:
        return self.row_max + self.log_sum

    def put(self, block: slice, z_BV: Tensor, targets_B: Tensor) -> None:
        """Results of the block's rows; destroys z."""
        max_B1 = z_BV.amax(1, keepdim=True)
        target_B = z_BV.sub_(max_B1).gather(1, targets_B[:, None])[:, 0]
        if self.entropy is None:
            sum_B = z_BV.exp_().sum(1)
        else:
            e_BV = z_BV.clamp_(min=FLOOR).exp()
            sum_B = e_BV.sum(1)
            self.entropy[block] = sum_B.log() - e_BV.mul_(z_BV).sum(1) / sum_B
        self.row_max[block] = max_B1[:, 0]
        self.log_sum[block] = sum_B.log()
        self.logp[block] = target_B - self.log_sum[block]


class RowGrads(NamedTuple):
    """The gradients of logp, lse and entropy, over the temperature; `active` marks the rows where one is not 0."""

    logp: Tensor
    lse: Tensor | None
    entropy: Tensor | None
    active: Tensor

    @classmethod
    def of(cls, grads: tuple[Tensor | None, ...], temperature: float | Tensor, rows: Rows) -> RowGrads:
        """From what autograd hands to backward, None where an output was not used."""
        active_T = torch.zeros_like(rows.row_max, dtype=torch.bool)
        for grad_T in grads:
            if grad_T is not None:
                active_T |= grad_T != 0
        logp_T, lse_T, entropy_T = (None if grad_T is None else grad_T / temperature for grad_T in grads)
        return cls(torch.zeros_like(rows.row_max) if logp_T is None else logp_T, lse_T, entropy_T, active_T)

    def apply_(self, z_BV: Tensor, block: slice, targets_B: Tensor, rows: Rows, factor_BV: Tensor | None) -> None:
        """Turn the block's z into the gradient of its logits, times `factor_BV` (the soft cap's)."""
        logp_B = self.logp[block]
        log_sum_B = rows.log_sum[block]
        inverse_B = torch.exp(-log_sum_B)
        shared_B = -logp_B if self.lse is None else self.lse[block] - logp_B
        z_BV.sub_(rows.row_max[block, None])
        if self.entropy is None:
            z_BV.exp_().mul_((shared_B * inverse_B)[:, None])
        else:
            assert rows.entropy is not None
            entropy_B = self.entropy[block]
            constant_B = shared_B + entropy_B * (log_sum_B - rows.entropy[block])
            e_BV = z_BV.clamp_(min=FLOOR).exp()
            z_BV.mul_((-entropy_B * inverse_B)[:, None]).add_((constant_B * inverse_B)[:, None]).mul_(e_BV)
        index_B1 = targets_B[:, None]
        z_BV.scatter_(1, index_B1, z_BV.gather(1, index_B1) + logp_B[:, None])
        if factor_BV is not None:
            z_BV.mul_(factor_BV)


def scale_(
    logits_BV: Tensor, temperature: float | Tensor, softcap: float | None, *, want_factor: bool = False
) -> Tensor | None:
    """Soft cap, then temperature, in place. The soft cap's derivative 1 - tanh^2 where wanted, None without a cap."""
    factor_BV = None
    if softcap is not None:
        logits_BV.div_(softcap).tanh_()
        if want_factor:
            factor_BV = (logits_BV * logits_BV).neg_().add_(1.0)
        logits_BV.mul_(softcap)
    if isinstance(temperature, Tensor):
        logits_BV.div_(temperature[:, None])
    elif temperature != 1.0:
        logits_BV.div_(temperature)
    return factor_BV


def blocks(num_rows: int, num_columns: int, device: torch.device) -> list[slice]:
    """Rows cut so that a block's passes over fp32 [B, V] run in a core's cache; long enough to fill a GPU."""
    size = block_rows(num_columns, device)
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def block_rows(num_columns: int, device: torch.device) -> int:
    """Rows of one block: 2^17 elements on the CPU (two fp32 buffers of 512 KiB), 2^23 elsewhere; at least one row."""
    return int(max(1, (1 << (17 if device.type == "cpu" else 23)) // num_columns))


def rows_of(value: float | Tensor, block: slice) -> float | Tensor:
    """The block's part of a per-token setting; a number is every token's."""
    return value[block] if isinstance(value, Tensor) else value


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_targets(targets_T: Tensor, num_tokens: int, vocabulary: int, device: torch.device) -> None:
    """Raises ValueError unless integer [T] on `device`, and, on the CPU, within the vocabulary."""
    if targets_T.shape != (num_tokens,) or targets_T.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"targets must be int32 or int64 [{num_tokens}], they are {describe(targets_T)}")
    if targets_T.device != device:
        raise ValueError(f"targets are on {targets_T.device}, the rest on {device}; move them")
    if device.type == "cpu" and num_tokens:
        low, high = (int(value) for value in torch.aminmax(targets_T))
        if low < 0 or high >= vocabulary:
            raise ValueError(
                f"targets range from {low} to {high}, the vocabulary from 0 to {vocabulary - 1}; "
                "leave tokens out with the loss's mask, not with an ignore index"
            )


def check_scaling(temperature: float | Tensor, softcap: float | None, num_tokens: int, device: torch.device) -> None:
    """Raises ValueError for a temperature or a soft cap that is not positive, or does not fit the tokens."""
    if isinstance(temperature, Tensor):
        if temperature.shape != (num_tokens,) or not temperature.is_floating_point() or temperature.device != device:
            raise ValueError(f"temperature must be a number or floating [{num_tokens}], it is {describe(temperature)}")
        if temperature.requires_grad:
            raise ValueError("temperature gets no gradient here; pass temperature.detach()")
        if device.type == "cpu" and not bool(((temperature > 0) & temperature.isfinite()).all()):
            raise ValueError(f"temperature must be positive and finite, its least value is {float(temperature.min())}")
    elif not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature = {temperature} must be positive and finite; 0 (greedy) has no log-probs")
    if softcap is not None and not (softcap > 0 and math.isfinite(softcap)):
        raise ValueError(f"softcap = {softcap} must be positive and finite, or None for no cap")


def describe(tensor: Tensor) -> str:
    """Dtype, shape and device, for error messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
