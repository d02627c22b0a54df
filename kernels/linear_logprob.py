"""Log-prob, log-sum-exp and entropy of one target per token, from hidden states and the head: logits never exist.

logits = hidden @ weight.T + bias, held in fp32; then as in `token_logprob`
dhidden = dlogits @ weight,  dweight = dlogits.T @ hidden,  dbias = sum_T dlogits
"""

# T packed tokens, A the ones with a gradient, C the tokens of one chunk, D model, V vocabulary

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1fast.kernels.checks import DTYPES, accumulator, check_scaling, check_targets, check_values, describe
from r1fast.kernels.head_chunks import HeadChunks, HeadGradients, Plan, check_budget
from r1fast.kernels.library import op
from r1fast.kernels.rows import RowGrads, Rows, Scaling
from r1fast.kernels.token_logprob import TokenLogprob, token_logprob_reference


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


def score_budget(device: torch.device) -> int:
    """Bytes of scratch where the caller names none: 441 tokens of a vocabulary of 151,936 on a GPU."""
    return (256 if device.type == "cuda" else 48) << 20


def _fake_forward(
    hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_T: Tensor, *more: Any
) -> tuple[Tensor, ...]:
    return Rows.fake_outputs(hidden_TD.shape[0], hidden_TD, entropy=more[3])


@op(
    "linear_logprob_forward(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? temperature_T, "
    "float temperature, float? softcap, bool entropy, int budget_bytes, bool check) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_forward,
)
def _forward(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    temperature_T: Tensor | None,
    temperature: float,
    softcap: float | None,
    entropy: bool,
    budget_bytes: int,
    check: bool,
) -> tuple[Tensor, ...]:
    """See Rows.outputs."""
    check_values(targets_T, len(weight_VD), temperature_T, check)
    rows = Rows.empty(len(hidden_TD), hidden_TD, entropy=entropy)
    scaling = Scaling.of(temperature, temperature_T, softcap, rows.logp.dtype)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        plan = Plan.of(hidden_TD, weight_VD, budget_bytes, dlogits=False, dweight=False)
        chunks = HeadChunks(hidden_TD, weight_VD, bias_V, plan)
        for chunk in chunks.chunks():
            chunks.compute(hidden_TD[chunk])
            chunks.put_rows(rows.select(chunk), targets_T[chunk], scaling.select(chunk))
    return rows.outputs(scaling)


def _fake_backward(
    hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, *more: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needs = more[-1]
    like = (hidden_TD, weight_VD, hidden_TD if bias_V is None else bias_V)
    hidden, weight, bias = (x.new_empty(x.shape if need else 0) for x, need in zip(like, needs, strict=True))
    return hidden, weight, bias


@op(
    "linear_logprob_backward(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? temperature_T, "
    "float temperature, float? softcap, int budget_bytes, Tensor row_max, Tensor log_sum, Tensor? entropy, "
    "Tensor? dlogp, Tensor? dlse, Tensor? dentropy, bool[] needs) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
)
def _backward(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_T: Tensor,
    temperature_T: Tensor | None,
    temperature: float,
    softcap: float | None,
    budget_bytes: int,
    row_max_T: Tensor,
    log_sum_T: Tensor,
    entropy_T: Tensor | None,
    dlogp_T: Tensor | None,
    dlse_T: Tensor | None,
    dentropy_T: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """dhidden, dweight, dbias, contiguous; empty where not needed. The logits are computed again."""
    rows = Rows(row_max_T, row_max_T, log_sum_T, entropy_T)  # logp is not read
    scaling = Scaling.of(temperature, temperature_T, softcap, log_sum_T.dtype)
    row_grads = RowGrads(dlogp_T, dlse_T, dentropy_T)
    # Rows without a gradient never reach a product: they cost nothing, and a NaN in a masked row stays there.
    index_A = row_grads.active(rows).nonzero()[:, 0]
    everything = len(index_A) == len(hidden_TD)
    hidden_AD = hidden_TD if everything else hidden_TD[index_A]
    if not everything:
        targets_T, rows, row_grads = targets_T[index_A], rows.select(index_A), row_grads.select(index_A)
        scaling = scaling.select(index_A)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        plan = Plan.of(hidden_AD, weight_VD, budget_bytes, dlogits=True, dweight=needs[1])
        chunks = HeadChunks(hidden_AD, weight_VD, bias_V, plan)
        gradients = HeadGradients(chunks, hidden_AD, weight_VD, bias_V, (needs[0], needs[1], needs[2]))
        for chunk in chunks.chunks():
            chunks.compute(hidden_AD[chunk])
            gradients.add(chunk, rows.select(chunk), row_grads.select(chunk), targets_T[chunk], scaling.select(chunk))
    dhidden, dweight, dbias = gradients.result()
    if dhidden is not None and not everything:
        dhidden = dhidden.new_zeros(hidden_TD.shape).index_copy_(0, index_A, dhidden)
    likes = (hidden_TD, weight_VD, hidden_TD if bias_V is None else bias_V)
    results = [
        like.new_empty(0) if x is None else x.to(like.dtype)
        for x, like in zip((dhidden, dweight, dbias), likes, strict=True)
    ]
    return results[0], results[1], results[2]


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
        budget_bytes: int,
        check: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        temperature_T = temperature if isinstance(temperature, Tensor) else None
        settings = (1.0 if isinstance(temperature, Tensor) else float(temperature), softcap)
        logp_T, lse_T, *statistics, entropy_T = _forward(
            hidden_TD, weight_VD, bias_V, targets_T, temperature_T, *settings, entropy, budget_bytes, check
        )
        kept_entropy_T = entropy_T if entropy else None
        ctx.save_for_backward(hidden_TD, weight_VD, bias_V, targets_T, temperature_T, *statistics, kept_entropy_T)
        ctx.set_materialize_grads(False)
        ctx.settings = (*settings, budget_bytes)
        return logp_T, lse_T, kept_entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TD, weight_VD, bias_V, targets_T, temperature_T, *statistics = ctx.saved_tensors
        needs = [bool(need) for need in ctx.needs_input_grad[:3]]
        found = _backward(
            hidden_TD, weight_VD, bias_V, targets_T, temperature_T, *ctx.settings, *statistics, *grads, needs
        )
        return *(x if need else None for x, need in zip(found, needs, strict=True)), *[None] * 6


def linear_logprob(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    *,
    bias_V: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    memory_budget_bytes: int | None = None,
    check: bool = False,
) -> TokenLogprob:
    """`token_logprob` of hidden @ weight.T + bias, a chunk of tokens at a time; backward computes the logits again.

    `hidden_TD`, `weight_VD`: floating, one dtype (bf16, fp16, fp32 or fp64) and device; `bias_V` any floating dtype.
    `targets_T`: integers in [0, V). Logits are fp32 whatever the dtype. Differentiable in hidden, weight and bias
    through all three results; the weight's gradient accumulates in fp32 and is not computed where not needed. Rows
    whose gradient is 0 are skipped. `memory_budget_bytes` bounds the scratch (None: 256 MiB on a GPU, 48 on a CPU);
    results, gradients and the fp32 accumulator of the weight's gradient, 4 V D bytes, or what stands in its place come
    on top.

    Raises ValueError for shapes, dtypes, devices and settings that do not fit, a budget below one token's logits, and
    on the CPU for a target out of range (on CUDA values are read only with `check`, which waits for the GPU).
    """
    check_head(hidden_TD, weight_VD, bias_V)
    check_targets(targets_T, hidden_TD.shape[0], hidden_TD.device)
    check_scaling(temperature, softcap, hidden_TD.shape[0], hidden_TD.device)
    budget_bytes = score_budget(hidden_TD.device) if memory_budget_bytes is None else memory_budget_bytes
    check_budget(hidden_TD, weight_VD, bias_V, budget_bytes)
    outputs = _LinearLogprob.apply(  # type: ignore[no-untyped-call]
        hidden_TD, weight_VD, bias_V, targets_T, temperature, softcap, entropy, budget_bytes, check
    )
    return TokenLogprob(*outputs)


def check_head(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> None:
    """Raises ValueError unless [T, D], [V, D] and [V] of one floating dtype (the bias of any) and device."""
    matching = hidden_TD.dim() == weight_VD.dim() == 2 and hidden_TD.shape[1] == weight_VD.shape[1]
    if not matching or not weight_VD.numel():
        raise ValueError(
            f"hidden must be [T, D] and weight [V, D], they are {describe(hidden_TD)} and {describe(weight_VD)}; an "
            "empty weight is a ZeRO-3 shard: use the head inside the root module's forward"
        )
    if hidden_TD.dtype != weight_VD.dtype or hidden_TD.dtype not in DTYPES or hidden_TD.device != weight_VD.device:
        raise ValueError(
            f"hidden and weight must have one floating dtype of 16, 32 or 64 bits and one device, they are "
            f"{describe(hidden_TD)} and {describe(weight_VD)}; cast or move one of them"
        )
    if bias_V is not None and (
        bias_V.shape != weight_VD.shape[:1] or bias_V.dtype not in DTYPES or bias_V.device != weight_VD.device
    ):
        raise ValueError(
            f"bias must be floating [{weight_VD.shape[0]}] on {weight_VD.device}, it is {describe(bias_V)}"
        )
