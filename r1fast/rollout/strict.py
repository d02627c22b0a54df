"""Log-probs bitwise those that the rollout gave, differentiable: a CPU's training by the decode step's own arithmetic.

The engine ran each prompt at once and then one token of each completion at a time. Its products and its fused
operations do not depend on the rows beside a row, so here all tokens pass a layer together; what would differ is how
they attend, which strict_attention.py does as the engine did. The gradient is that of ordinary training.
"""

# T packed tokens, C packed completion tokens, D model, V vocabulary

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from r1fast.kernels.linear_logprob import linear_logprob
from r1fast.ops.given_logprob import given_logprob
from r1fast.policy import Policy
from r1fast.records import Batch
from r1fast.rollout.batch import padded
from r1fast.rollout.cpu_layers import cpu_layers
from r1fast.rollout.generation import CHUNK_TOKENS, PREFILL_TOKENS
from r1fast.rollout.head import Head
from r1fast.rollout.strict_attention import StrictContext

LOGITS_BYTES = 48 << 20  # of the fp32 logits of one call of the head


def strict_logprobs(
    policy: Policy,
    batch: Batch,
    temperature: float,
    *,
    prefill_tokens: int = PREFILL_TOKENS,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies of the batch's completion tokens at `temperature`, fp32 [C].

    Bit by bit `Rollout.logp` and `.entropy` where the weights are those that drew the completions. Differentiable where
    gradients are enabled. `prefill_tokens`, `chunk_tokens`: as the engine cuts prompts. Raises ValueError off the CPU.
    """
    if policy.device.type != "cpu":
        raise ValueError(
            f"the policy is on {policy.device}; bitwise the rollout's log-probs are shown on the CPU alone"
        )
    if not len(batch.targets):
        return torch.zeros(0), torch.zeros(0)
    cuts = {"prefill_tokens": prefill_tokens, "chunk_tokens": chunk_tokens}
    logp_C, entropy_C = _exact(policy, _padded(batch), temperature, cuts)
    if not torch.is_grad_enabled():
        return logp_C, entropy_C
    hidden_CD = policy.hidden(batch).index_select(0, batch.predictor_index)
    found = linear_logprob(hidden_CD, policy.head_weight, batch.targets, temperature=temperature, entropy=True)
    assert found.entropy is not None
    return exactly(found.logp, logp_C), exactly(found.entropy, entropy_C)


def exactly(value: Tensor, exact: Tensor) -> Tensor:
    """`exact`, with the gradient of `value`: where both are one function in another order of rounding."""
    result: Tensor = _Exactly.apply(value, exact)  # type: ignore[no-untyped-call]
    return result


class _Exactly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, exact: Tensor) -> Tensor:
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@torch.no_grad()
def _exact(policy: Policy, batch: Batch, temperature: float, cuts: dict[str, int]) -> tuple[Tensor, Tensor]:
    with cpu_layers(policy.module):
        hidden_TD = policy.hidden(batch, StrictContext(batch, **cuts))
    return _numbers(policy, hidden_TD.index_select(0, batch.predictor_index), batch.targets, temperature)


def _numbers(policy: Policy, hidden_CD: Tensor, targets_C: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """By the rollout's head and sums, some rows at a time: as many as the engine may have, a multiple of 16."""
    head, tokens = Head(policy), targets_C.int()
    num_rows = padded(max(1, LOGITS_BYTES // (4 * head.num_vocab)))
    found = []
    for first in range(0, len(tokens), num_rows):
        rows = slice(first, first + num_rows)
        count = len(tokens[rows])
        hidden_RD = torch.nn.functional.pad(hidden_CD[rows], (0, 0, 0, padded(count) - count))
        found.append(given_logprob(head.logits(hidden_RD)[:count], tokens[rows], temperature))
    logp_C, entropy_C = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logp_C, entropy_C


def _padded(batch: Batch) -> Batch:
    """With a last sequence that nobody reads, so that there are as many tokens as a product does not depend on."""
    num_tokens = len(batch.token_ids)
    padding = padded(num_tokens) - num_tokens
    if not padding:
        return batch
    end = batch.cu_seqlens.new_tensor([num_tokens + padding])
    return replace(
        batch,
        token_ids=torch.cat([batch.token_ids, batch.token_ids.new_zeros(padding)]),
        cu_seqlens=torch.cat([batch.cu_seqlens, end]),
        parent=None if batch.parent is None else torch.cat([batch.parent, batch.parent.new_tensor([-1])]),
    )
