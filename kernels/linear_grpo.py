"""Policy loss from hidden states and the head, in one pass: logits and their gradient live a chunk at a time.

Where a token's gradient does not wait for other tokens, forward makes it at once: 3 products (logits, dhidden, dweight;
2 with a frozen head) instead of the 4 of scoring now and computing the logits again in backward. Ratios of a whole
sequence wait for its last token: 4. Formulas: `grpo_loss`, `token_logprob`.
"""

# T packed tokens, A those that are scored, C those of one chunk, N sequences, D model, V vocabulary

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1fast.kernels.checks import check_scaling, check_targets, check_values
from r1fast.kernels.grpo_loss import check_loss, evaluate, grpo_loss_reference, report
from r1fast.kernels.head_chunks import HeadChunks, HeadGradients, Plan, check_budget
from r1fast.kernels.library import op
from r1fast.kernels.linear_logprob import check_head, linear_logprob_reference
from r1fast.kernels.policy_loss import VALUES, PolicyLoss, decode
from r1fast.kernels.rows import RowGrads, Rows, Scaling
from r1fast.kernels.segments import check_offsets
from r1fast.kernels.token_losses import Tokens


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


def loss_budget(device: torch.device) -> int:
    """Bytes of scratch where the caller names none: 1,035 tokens of a vocabulary of 151,936 on a GPU."""
    return (600 if device.type == "cuda" else 48) << 20


class _Scored:
    """The tokens that can contribute, without gaps: what is masked never reaches a product, nor does what has
    advantage 0 where that alone makes the loss. They still count in denominators."""

    def __init__(
        self,
        tokens: Tokens,
        targets_T: Tensor,
        temperature_T: Tensor | None,
        mask_T: Tensor | None,
        advantage_N: Tensor,
        cu_seqlens: Tensor,
        options: PolicyLoss,
    ) -> None:
        offsets = cu_seqlens.long()
        length_N = offsets.diff()
        keep_T = mask_T
        if mask_T is not None:
            before = torch.zeros(len(mask_T) + 1, dtype=torch.long, device=mask_T.device)
            torch.cumsum(mask_T, 0, out=before[1:])
            length_N = before[offsets].diff()
        if options.skips_zero_advantage:
            moves_T = torch.repeat_interleave(advantage_N != 0, offsets.diff(), output_size=len(targets_T))
            keep_T = moves_T if mask_T is None else mask_T & moves_T
        self.length_N = length_N
        self.index_A = None if keep_T is None else keep_T.nonzero()[:, 0]
        self.offsets = offsets if self.index_A is None else torch.searchsorted(self.index_A, offsets)
        self.tokens = {name: None if x_T is None else self.of(x_T) for name, x_T in tokens.items()}
        self.targets_A = self.of(targets_T)
        self.temperature_A = None if temperature_T is None else self.of(temperature_T)

    def of(self, values_T: Tensor) -> Tensor:
        """The scored tokens' values."""
        return values_T if self.index_A is None else values_T.index_select(0, self.index_A)


class _Objective:
    """`evaluate` with all that stays the same from chunk to chunk."""

    def __init__(
        self,
        scored: _Scored,
        advantage_N: Tensor,
        denominator_tensor: Tensor | None,
        denominator: float,
        options: PolicyLoss,
    ) -> None:
        self.scored, self.advantage_N, self.options = scored, advantage_N, options
        self.divisor = (denominator_tensor, denominator)
        # a sequence's ratio or weight needs all its tokens
        self.separable = options.level == "token" or options.objective in ("reinforce", "nll")
        if options.correction != "none" and options.correction_level == "sequence":
            self.separable = False

    def __call__(self, rows: Rows, chunk: slice) -> tuple[Tensor, Tensor, RowGrads]:
        """Loss, VALUES and the gradients of the rows' results, as if the batch were this chunk."""
        inputs = [None if x_A is None else x_A[chunk] for x_A in self.scored.tokens.values()]
        offsets = (self.scored.offsets - chunk.start).clamp(0, len(rows.logp))
        loss, values_M, dlogp_C, dentropy_C = evaluate(
            rows.logp,
            self.advantage_N,
            offsets,
            *inputs,
            rows.entropy,
            None,
            self.scored.length_N,
            *self.divisor,
            self.options.encode(),
            False,
        )
        return loss, values_M, RowGrads(dlogp_C, None, dentropy_C if self.options.entropy_coef else None)


def _fake_forward(
    hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, *more: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    likes = (hidden_TD, weight_VD, hidden_TD if bias_V is None else bias_V)
    found = [
        x.new_empty(x.shape, dtype=_saved_dtype(x.dtype)) if need else x.new_empty(0)
        for x, need in zip(likes, more[-2], strict=True)
    ]
    dtype = torch.float64 if hidden_TD.dtype == torch.float64 else torch.float32
    loss, values_M = (hidden_TD.new_empty(shape, dtype=dtype) for shape in ((), len(VALUES) + 1))
    return loss, values_M, found[0], found[1], found[2]


@op(
    "linear_grpo_forward(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? temperature_T, "
    "float temperature, float? softcap, int budget_bytes, Tensor advantage, Tensor cu_seqlens, Tensor? old_logp, "
    "Tensor? ref_logp, Tensor? rollout_logp, Tensor? log_kept_mass, Tensor? mask, Tensor? denominator_tensor, "
    "float denominator, str options, bool[] needs, bool check) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
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
    budget_bytes: int,
    advantage_N: Tensor,
    cu_seqlens: Tensor,
    old_logp_T: Tensor | None,
    ref_logp_T: Tensor | None,
    rollout_logp_T: Tensor | None,
    log_kept_mass_T: Tensor | None,
    mask_T: Tensor | None,
    denominator_tensor: Tensor | None,
    denominator: float,
    options: str,
    needs: list[bool],
    check: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Loss; VALUES, number of scored tokens [M + 1]; dhidden, dweight, dbias, contiguous, empty where not needed."""
    check_values(targets_T, len(weight_VD), temperature_T, check)
    check_offsets(cu_seqlens, len(targets_T), check)
    tokens: Tokens = {"old_logp": old_logp_T, "ref_logp": ref_logp_T, "rollout_logp": rollout_logp_T}
    tokens |= {"log_kept_mass": log_kept_mass_T}
    chosen = decode(options)
    scored = _Scored(tokens, targets_T, temperature_T, mask_T, advantage_N, cu_seqlens, chosen)
    objective = _Objective(scored, advantage_N, denominator_tensor, denominator, chosen)
    hidden_AD = scored.of(hidden_TD)
    rows = Rows.empty(len(hidden_AD), hidden_AD, entropy=True)
    scaling = Scaling.of(temperature, scored.temperature_A, softcap, rows.logp.dtype)
    everything = slice(0, len(hidden_AD))
    with torch.autocast(hidden_TD.device.type, enabled=False):
        plan = Plan.of(hidden_AD, weight_VD, budget_bytes, dlogits=any(needs), dweight=needs[1])
        chunks = HeadChunks(hidden_AD, weight_VD, bias_V, plan)
        gradients = HeadGradients(chunks, hidden_AD, weight_VD, bias_V, (needs[0], needs[1], needs[2]))
        known: RowGrads | None = None
        if not (objective.separable and any(needs)):
            for chunk in chunks.chunks():
                chunks.compute(hidden_AD[chunk])
                chunks.put_rows(rows.select(chunk), scored.targets_A[chunk], scaling.select(chunk))
            loss, values_M, known = objective(rows, everything)
        folds = known is None and chunks.folds(softcap) and not chosen.entropy_coef
        for chunk in chunks.chunks() if any(needs) else ():
            own, targets_C, own_scaling = rows.select(chunk), scored.targets_A[chunk], scaling.select(chunk)
            chunks.compute(hidden_AD[chunk])
            if known is None:
                chunks.put_rows(own, targets_C, own_scaling, keep=folds)
            row_grads = objective(own, chunk)[-1] if known is None else known.select(chunk)
            if folds and row_grads.logp is not None:
                gradients.fold(chunk, own, row_grads.logp, targets_C, own_scaling)
            else:
                gradients.add(chunk, own, row_grads, targets_C, own_scaling)
        if known is None:
            loss, values_M, _ = objective(rows, everything)
    dhidden, dweight, dbias = gradients.result()
    del chunks, gradients  # their buffers make room for the weight's gradient in its own dtype
    if dhidden is not None and scored.index_A is not None:
        dhidden = dhidden.new_zeros(hidden_TD.shape).index_copy_(0, scored.index_A, dhidden)
    likes = (hidden_TD, weight_VD, hidden_TD if bias_V is None else bias_V)
    found = [
        like.new_empty(0) if x is None else x.to(_saved_dtype(like.dtype))
        for x, like in zip((dhidden, dweight, dbias), likes, strict=True)
    ]
    return loss, _with_counts(values_M, scored.length_N, chosen), found[0], found[1], found[2]


def _with_counts(values_M: Tensor, length_N: Tensor, options: PolicyLoss) -> Tensor:
    """Counts of all unmasked tokens in the place of the scored ones', whose number goes to the end."""
    tokens, weights = VALUES.index("tokens_count"), VALUES.index("loss_count")
    all_M = torch.cat([values_M, values_M[tokens : tokens + 1]])
    all_M[tokens] = length_N.sum()
    all_M[weights] = (length_N > 0).sum() if options.aggregate == "sequence_mean" else length_N.sum()
    return all_M


def _saved_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of a gradient that waits for the loss's own: fp16 holds it only after the loss scaler's factor."""
    return torch.float32 if dtype == torch.float16 else dtype


class _LinearGrpoLoss(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, loss: Tensor, *gradients: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*gradients)
        ctx.dtypes = (hidden_TD.dtype, weight_VD.dtype, None if bias_V is None else bias_V.dtype)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:3]
        found = zip(ctx.saved_tensors, ctx.dtypes, needs, strict=True)
        return *((grad * x).to(dtype) if need else None for x, dtype, need in found), None, None, None, None


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
    check: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss (0-dim) and metrics, entropy among them; differentiable in hidden, weight and bias.

    Arguments are those of `linear_logprob` and `grpo_loss`, errors too. Masked tokens never reach a product: their
    hidden states may hold NaN, their targets must be in range all the same. Nor do tokens with advantage 0 where
    neither a KL term nor an entropy bonus is on; the metrics then cover the others, and have their own `_count`.
    The gradients are made here and wait for backward, which multiplies them by the loss's: hidden's, weight's and
    bias's size, on top of the budget (None: 600 MiB on a GPU, 48 on a CPU) and of the fp32 accumulator of the
    weight's, 4 V D bytes, or what stands in its place. Where tokens are left out, the others' hidden states and their
    gradient are copied.
    """
    check_head(hidden_TD, weight_VD, bias_V)
    num_tokens, device = hidden_TD.shape[0], hidden_TD.device
    check_targets(targets_T, num_tokens, device)
    check_scaling(temperature, softcap, num_tokens, device)
    tokens: Tokens = {"old_logp": old_logp_T, "ref_logp": ref_logp_T, "rollout_logp": rollout_logp_T}
    tokens |= {"log_kept_mass": log_kept_mass_T}
    check_loss(num_tokens, device, advantage_N, cu_seqlens, tokens, mask_T, denominator, options)
    budget_bytes = loss_budget(device) if memory_budget_bytes is None else memory_budget_bytes
    check_budget(hidden_TD, weight_VD, bias_V, budget_bytes)
    heads = (hidden_TD, weight_VD, bias_V)
    enabled = torch.is_grad_enabled()
    with torch.no_grad():
        needs = [x is not None and x.requires_grad for x in heads] if enabled else [False] * 3
        loss, values_M, *gradients = _forward(
            *(None if x is None else x.detach() for x in heads),
            targets_T,
            *((temperature, 1.0) if isinstance(temperature, Tensor) else (None, float(temperature))),
            softcap,
            budget_bytes,
            advantage_N.detach(),
            cu_seqlens,
            *(None if x_T is None else x_T.detach() for x_T in tokens.values()),
            mask_T,
            *((denominator.detach(), 1.0) if isinstance(denominator, Tensor) else (None, float(denominator))),
            options.encode(),
            needs,
            check,
        )
    metrics = report(values_M, options, entropy=True, rollout=rollout_logp_T is not None)
    if options.skips_zero_advantage:
        own = [name.removesuffix("_sum") for name in metrics if name.endswith("_sum") and name != "loss_sum"]
        metrics |= {f"{name}_count": values_M[-1] for name in own}
    return _LinearGrpoLoss.apply(*heads, loss, *gradients), metrics  # type: ignore[no-untyped-call]
