"""Log-prob, log-sum-exp and entropy of one target per token, from hidden states and the head: logits never exist.

logits = hidden @ weight.T + bias, held in fp32; then as in `token_logprob`
dhidden = dlogits @ weight,  dweight = dlogits.T @ hidden,  dbias = sum_T dlogits
"""

# T packed tokens, A the ones with a gradient, C the tokens of one chunk, D model, V vocabulary

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1fast.kernels.token_logprob import (
    RowGrads,
    Rows,
    TokenLogprob,
    accumulator,
    block_rows,
    blocks,
    check_scaling,
    check_targets,
    describe,
    rows_of,
    scale_,
    token_logprob_reference,
)

DEFAULT_MEMORY_BUDGET_BYTES = 256 << 20
_SLAB_BYTES = 32 << 20  # of one piece of a chunk's weight gradient


def linear_logprob_reference(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
) -> TokenLogprob:
    """The definition in eager torch, all logits at once: differentiable in everything, fp64 stays fp64."""
    dtype = accumulator(hidden_TD.dtype)
    logits_TV = hidden_TD.to(dtype) @ weight_VD.to(dtype).T
    if bias_V is not None:
        logits_TV = logits_TV + bias_V.to(dtype)
    return token_logprob_reference(logits_TV, targets_T, temperature=temperature, softcap=softcap, entropy=entropy)


class _Logits:
    """Logits of one chunk at a time, fp32 in effect, in buffers made once; and room for their gradient.

    fp32 and fp64: one product. bf16 and fp16 on CUDA: one product with fp32 output. On the CPU, which has none, a
    compensated one: y = round(h W'), low = round(h W' - y) from the fp32 accumulator, logits = y + low (error 2^-16
    relative instead of 2^-8, at a third of the time of an fp32 product).
    """

    def __init__(self, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, budget_bytes: int) -> None:
        self.weight_DV = weight_VD.T
        self.bias_V = bias_V
        self.dtype = accumulator(hidden_TD.dtype)
        self.low_precision = hidden_TD.dtype != self.dtype
        self.compensated = self.low_precision and hidden_TD.device.type == "cpu"
        self.num_tokens, self.vocabulary = len(hidden_TD), len(weight_VD)
        self.chunk_size = _chunk_size(self.num_tokens, weight_VD, self.low_precision, self.compensated, budget_bytes)
        shape = (self.chunk_size, self.vocabulary)
        device = hidden_TD.device
        self.high_CV = torch.empty(shape, dtype=hidden_TD.dtype if self.compensated else self.dtype, device=device)
        self.low_CV = torch.empty_like(self.high_CV) if self.compensated else None
        # The gradient of a block's logits takes the place of the block's logits, which nobody needs any more.
        needs_own = self.low_precision and not self.compensated
        self.grad_CV = torch.empty(shape, dtype=hidden_TD.dtype, device=device) if needs_own else self.high_CV

    def chunks(self) -> Iterator[slice]:
        for start in range(0, self.num_tokens, self.chunk_size):
            yield slice(start, min(start + self.chunk_size, self.num_tokens))

    def compute(self, hidden_CD: Tensor) -> None:
        """Fill the buffers with the chunk's logits (without the bias)."""
        high_CV = self.high_CV[: len(hidden_CD)]
        if self.low_CV is not None:
            low_CV = self.low_CV[: len(hidden_CD)]
            torch.mm(hidden_CD, self.weight_DV, out=high_CV)
            torch.addmm(high_CV, hidden_CD, self.weight_DV, beta=-1, out=low_CV)
        elif self.low_precision:
            torch.mm(hidden_CD, self.weight_DV, out_dtype=self.dtype, out=high_CV)
        else:
            torch.mm(hidden_CD, self.weight_DV, out=high_CV)

    def block(self, rows: slice) -> Tensor:
        """Those rows of the chunk's logits [B, V], in fp32; the caller may destroy them."""
        z_BV = self.high_CV[rows]
        if self.low_CV is not None:
            z_BV = z_BV.to(self.dtype).add_(self.low_CV[rows])
        if self.bias_V is not None:
            z_BV.add_(self.bias_V)
        return z_BV


class _LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_T: Tensor,
        temperature: float | Tensor,
        softcap: float | None,
        entropy: bool,
        memory_budget_bytes: int,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        rows = Rows.empty(len(hidden_TD), hidden_TD, entropy=entropy)
        with torch.autocast(hidden_TD.device.type, enabled=False):
            logits = _Logits(hidden_TD, weight_VD, bias_V, memory_budget_bytes)
            for chunk in logits.chunks():
                logits.compute(hidden_TD[chunk])
                for local in blocks(chunk.stop - chunk.start, logits.vocabulary, hidden_TD.device):
                    block = slice(chunk.start + local.start, chunk.start + local.stop)
                    z_BV = logits.block(local)
                    scale_(z_BV, rows_of(temperature, block), softcap)
                    rows.put(block, z_BV, targets_T[block])
        temperature_T = temperature if isinstance(temperature, Tensor) else None
        ctx.save_for_backward(
            hidden_TD, weight_VD, bias_V, targets_T, temperature_T, rows.row_max, rows.log_sum, rows.entropy
        )
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.softcap, ctx.budget_bytes = temperature, softcap, memory_budget_bytes
        return rows.logp, rows.lse, rows.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, bias_V, targets_T, temperature_T, row_max_T, log_sum_T, entropy_T = ctx.saved_tensors
        temperature = ctx.temperature if temperature_T is None else temperature_T
        rows = Rows(None, row_max_T, log_sum_T, entropy_T)
        row_grads = RowGrads.of(grads, temperature, rows)
        # Rows without a gradient never reach a product: they cost nothing, and a NaN in a masked row stays there.
        active_A = row_grads.active.nonzero()[:, 0]
        everything = len(active_A) == len(hidden_TD)
        hidden_AD = hidden_TD if everything else hidden_TD[active_A]
        if not everything:
            targets_T, rows, row_grads = targets_T[active_A], _select(rows, active_A), _select(row_grads, active_A)
            temperature = temperature if temperature_T is None else temperature_T[active_A]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        with torch.autocast(hidden_TD.device.type, enabled=False):
            row_grads, unit = _normalised(row_grads, hidden_TD.dtype)
            logits = _Logits(hidden_AD, weight_VD, bias_V, ctx.budget_bytes)
            dhidden_AD = torch.empty_like(hidden_AD) if needs_hidden else None
            dweight_VD = _zeros(weight_VD, rows.dtype) if needs_weight else None
            dbias_V = _zeros(bias_V, rows.dtype) if needs_bias else None
            for chunk in logits.chunks():
                hidden_CD = hidden_AD[chunk]
                logits.compute(hidden_CD)
                for local in blocks(chunk.stop - chunk.start, logits.vocabulary, hidden_TD.device):
                    block = slice(chunk.start + local.start, chunk.start + local.stop)
                    z_BV = logits.block(local)
                    factor_BV = scale_(z_BV, rows_of(temperature, block), ctx.softcap, want_factor=True)
                    row_grads.apply_(z_BV, block, targets_T[block], rows, factor_BV)
                    if dbias_V is not None:
                        dbias_V += z_BV.sum(0)
                    if logits.low_precision:
                        logits.grad_CV[local] = z_BV
                dlogits_CV = logits.grad_CV[: chunk.stop - chunk.start]
                if dhidden_AD is not None:
                    torch.mm(dlogits_CV, weight_VD, out=dhidden_AD[chunk])
                if dweight_VD is not None:
                    _add_outer_(dweight_VD, dlogits_CV, hidden_CD)
            if unit is not None:
                for gradient in (dhidden_AD, dweight_VD, dbias_V):
                    if gradient is not None:
                        gradient.mul_(unit)
        if dhidden_AD is not None and not everything:
            dhidden_AD = torch.zeros_like(hidden_TD).index_copy_(0, active_A, dhidden_AD)
        return (
            dhidden_AD,
            None if dweight_VD is None else dweight_VD.to(weight_VD.dtype),
            None if dbias_V is None else dbias_V.to(bias_V.dtype),
            *[None] * 5,
        )


def linear_logprob(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    memory_budget_bytes: int = DEFAULT_MEMORY_BUDGET_BYTES,
) -> TokenLogprob:
    """`token_logprob` of hidden @ weight.T + bias, a chunk of tokens at a time; backward computes the logits again.

    `hidden_TD`, `weight_VD`: floating, one dtype (bf16, fp16, fp32 or fp64) and device; `bias_V` any floating dtype.
    `targets_T`: integers in [0, V). Logits are fp32 whatever the dtype. Differentiable in hidden, weight and bias
    through all three results; the weight's gradient accumulates in fp32 and is not computed where not needed. Rows
    whose gradient is 0 are skipped. `memory_budget_bytes` bounds the scratch; results, gradients and the fp32
    accumulator of the weight's gradient (4 V D bytes) come on top.

    Raises ValueError for shapes, dtypes, devices and settings that do not fit, a budget below one token's logits, and
    on the CPU for a target out of range (on CUDA values are not read).
    """
    matching = hidden_TD.dim() == weight_VD.dim() == 2 and hidden_TD.shape[1] == weight_VD.shape[1]
    if not matching or not weight_VD.numel():
        raise ValueError(
            f"hidden must be [T, D] and weight [V, D], they are {describe(hidden_TD)} and {describe(weight_VD)}; an "
            "empty weight is a ZeRO-3 shard: use the head inside the root module's forward"
        )
    if hidden_TD.dtype != weight_VD.dtype or not hidden_TD.is_floating_point() or hidden_TD.device != weight_VD.device:
        raise ValueError(
            f"hidden and weight must have one floating dtype and device, they are {describe(hidden_TD)} and "
            f"{describe(weight_VD)}; cast one of them"
        )
    if bias_V is not None and (bias_V.shape != weight_VD.shape[:1] or bias_V.device != weight_VD.device):
        raise ValueError(f"bias must be [{len(weight_VD)}] on {weight_VD.device}, it is {describe(bias_V)}")
    check_targets(targets_T, len(hidden_TD), len(weight_VD), hidden_TD.device)
    check_scaling(temperature, softcap, len(hidden_TD), hidden_TD.device)
    outputs = _LinearLogprob.apply(  # type: ignore[no-untyped-call]
        hidden_TD, weight_VD, bias_V, targets_T.long(), temperature, softcap, entropy, memory_budget_bytes
    )
    return TokenLogprob(*outputs)


def _chunk_size(num_tokens: int, weight_VD: Tensor, low_precision: bool, compensated: bool, budget_bytes: int) -> int:
    """Tokens whose logits, with a block's temporaries, fit the budget."""
    vocabulary = len(weight_VD)
    wide = max(4, weight_VD.element_size())
    per_row = (2 * weight_VD.element_size() if compensated else wide + (2 if low_precision else 0)) * vocabulary
    temporary = 3 * wide * vocabulary
    block = block_rows(vocabulary, weight_VD.device)
    rows = (budget_bytes - temporary * block) // per_row
    if rows < block:  # the whole chunk is one block
        rows = min(block, budget_bytes // (per_row + temporary))
    if rows < 1:
        raise ValueError(
            f"memory_budget_bytes = {budget_bytes} holds no token of a vocabulary of {vocabulary}; "
            f"give at least {per_row + temporary}"
        )
    return max(1, min(rows, num_tokens))


def _add_outer_(total_VD: Tensor, dlogits_CV: Tensor, hidden_CD: Tensor) -> None:
    """total += dlogits.T @ hidden, in fp32; by slabs of the vocabulary, so that no second [V, D] exists."""
    if total_VD.dtype == hidden_CD.dtype:
        total_VD.addmm_(dlogits_CV.T, hidden_CD)
        return
    slab = max(1, _SLAB_BYTES // (4 * hidden_CD.shape[1]))
    for start in range(0, len(total_VD), slab):
        part_CS = dlogits_CV[:, start : start + slab]
        if hidden_CD.is_cuda:
            total_VD[start : start + slab] += torch.mm(part_CS.T, hidden_CD, out_dtype=total_VD.dtype)
        else:
            total_VD[start : start + slab] += torch.mm(part_CS.T, hidden_CD)


def _normalised(row_grads: RowGrads, dtype: torch.dtype) -> tuple[RowGrads, Tensor | None]:
    """For fp16 only: gradients over their largest value, and that value; 1 / (global tokens) may underflow in fp16."""
    if dtype != torch.float16 or not len(row_grads.logp):
        return row_grads, None
    parts = [grad for grad in row_grads[:3] if grad is not None]
    largest = torch.stack([torch.where(grad.isfinite(), grad, 0.0).abs().amax() for grad in parts]).amax()
    unit = largest.clamp(min=torch.finfo(torch.float32).tiny)
    logp, lse, entropy = (None if grad is None else grad / unit for grad in row_grads[:3])
    assert logp is not None
    return RowGrads(logp, lse, entropy, row_grads.active), unit


def _select(fields: Any, index_A: Tensor) -> Any:
    """The same named tuple, of some of its tokens."""
    return type(fields)(*(None if field is None else field[index_A] for field in fields))


def _zeros(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(like.shape, dtype=dtype, device=like.device)
