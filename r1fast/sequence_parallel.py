"""Long contexts: the processes of a group share each micro-batch's tokens, and attention exchanges them for heads.

DeepSpeed's Ulysses (arXiv 2309.14509): every process runs its slice of the tokens through all layers; around attention
an all-to-all gives it all tokens of its share of the heads, and a second one its own tokens of all heads. Activations
are divided by the number of processes, so that 64k tokens need what 16k need on one of four. DeepSpeed's own layer
replaces attention for the whole process and wants its own communication started; this is the same exchange inside the
training attention alone, so that generation never sees it and both engines can have it.
"""

# N processes of a group, T packed tokens (a multiple of N), L = T / N, E head dimension, C completion tokens, D model

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from r1fast.attention import PackedContext
from r1fast.distributed import Ranks
from r1fast.kernels.linear_logprob import linear_logprob
from r1fast.packing import position_ids
from r1fast.policy import Policy
from r1fast.records import Batch
from r1fast.user_input import ConfigError


class SequenceLogprobs:
    """Log-probs and entropies of a micro-batch that all processes of `ranks`' group have: a `trainer.Logprobs`.

    Every process gets all of them and computes the same loss; backward takes each process's own tokens back, so that
    its gradients are those of its slice, to be summed over all processes.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def __call__(self, policy: Policy, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
        """fp32 [C] each, differentiable; collective in the group. ValueError for prompts that are stored once."""
        if batch.parent is not None:
            raise ValueError("micro-batches with shared prompts cannot be sliced; pack them with share_prompts=False")
        size, place, group = self.ranks.sequence_parallel, self.ranks.sequence_place, self.ranks.sequence_group
        num_tokens = len(batch.token_ids)
        rest = -num_tokens % size
        cu_seqlens = torch.cat([batch.cu_seqlens, batch.cu_seqlens.new_tensor([num_tokens + rest])])
        length = (num_tokens + rest) // size
        own = slice(place * length, (place + 1) * length)
        hidden_LD = policy.hidden_slice(
            pad(batch.token_ids, (0, rest))[own],
            position_ids(cu_seqlens)[own],
            UlyssesContext(PackedContext(cu_seqlens, policy.device), size, group),
        )
        # predictors rise from sequence to sequence, so the slices' tokens follow each other in C
        bounds = torch.searchsorted(batch.predictor_index, torch.arange(size + 1) * length).tolist()
        low, high = bounds[place], bounds[place + 1]
        index = batch.predictor_index[low:high] - own.start
        # one row more that nobody reads: a slice without a completion's token takes part in backward, too
        hidden_CD = hidden_LD.index_select(0, pad(index, (0, 1)).to(policy.device))
        targets = pad(batch.targets[low:high], (0, 1)).to(policy.device)
        found = linear_logprob(hidden_CD, policy.head_weight, targets, temperature=temperature, entropy=True)
        assert found.entropy is not None
        both = torch.stack([found.logp, found.entropy], 1)[:-1]
        counts = [end - start for start, end in pairwise(bounds)]
        gathered: Tensor = _Gather.apply(both, counts, place, group)  # type: ignore[no-untyped-call]
        logp_C, entropy_C = gathered.unbind(1)
        return logp_C, entropy_C


class UlyssesContext:
    """Attention of slices [1, heads, L, E] through `inner`, which sees all T tokens of this process's heads."""

    def __init__(self, inner: PackedContext, size: int, group: Any) -> None:
        self.inner, self.size, self.group = inner, size, group

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionContext.attend; B must be 1. Key/value heads fewer than processes are computed by several."""
        check_heads(query.shape[1], key.shape[1], self.size)
        if key.shape[1] < self.size:
            key, value = (x.repeat_interleave(self.size // x.shape[1], dim=1) for x in (key, value))
        query, key, value = (self._tokens_of_own_heads(x) for x in (query, key, value))
        out_THE = self.inner.attend(module, query, key, value, scaling)[0]
        return self._heads_of_own_tokens(out_THE)[None]

    def _tokens_of_own_heads(self, x: Tensor) -> Tensor:
        """[1, heads, L, E] -> [1, heads / N, T, E]."""
        parts = self._exchange(x[0].reshape(self.size, -1, *x.shape[2:]))  # [N, heads / N, L, E], now by slice
        return parts.transpose(0, 1).flatten(1, 2)[None]

    def _heads_of_own_tokens(self, x: Tensor) -> Tensor:
        """[T, heads / N, E] -> [L, heads, E]."""
        parts = self._exchange(
            x.reshape(self.size, -1, *x.shape[1:])
        )  # [N, L, heads / N, E], now by share of the heads
        return parts.transpose(0, 1).flatten(1, 2)

    def _exchange(self, parts: Tensor) -> Tensor:
        exchanged: Tensor = _Exchange.apply(parts, self.group)  # type: ignore[no-untyped-call]
        return exchanged


def check_heads(num_heads: int, num_kv_heads: int, size: int, *, option: str = "distributed.sequence_parallel") -> None:
    """ConfigError where `size` processes, which `option` asks for, cannot share the heads of attention."""
    if num_heads % size or (num_kv_heads % size and size % num_kv_heads):
        fitting = [
            n for n in range(2, num_heads + 1) if not num_heads % n and not (num_kv_heads % n and n % num_kv_heads)
        ]
        raise ConfigError(
            f"{option} = {size} cannot share {num_heads} query and {num_kv_heads} key/value heads out: it must divide "
            f"the former, and divide the latter or be a multiple of them: {fitting or 'only 1'}"
        )


def check_sequence_parallel(described: Any, size: int) -> None:
    """ConfigError for a Hugging Face config whose model cannot be trained on slices."""
    if size == 1:
        return
    config = described.get_text_config()
    check_heads(*_num_heads(config), size)
    rope: Any = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else "default"
    if kind in ("dynamic", "longrope"):
        raise ConfigError(
            f"distributed.sequence_parallel = {size} with rope_type {kind!r}: positions are scaled by the longest that "
            "a process sees, and each sees its slice; set sequence_parallel to 1"
        )


def check_tensor_parallel(described: Any, size: int) -> None:
    """ConfigError for a Hugging Face config whose model `size` processes cannot share out in vLLM."""
    check_heads(*_num_heads(described.get_text_config()), size, option="rollout.tensor_parallel")


def _num_heads(config: Any) -> tuple[int, int]:
    """Of queries, of keys and values."""
    num_heads = int(config.num_attention_heads)
    return num_heads, int(getattr(config, "num_key_value_heads", None) or num_heads)


class _Exchange(torch.autograd.Function):
    """Part n of every process goes to process n; [N, ...], by sender. Backward is the same exchange."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_to_all(parts, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grads[0], ctx.group), None


def _all_to_all(parts: Tensor, group: Any) -> Tensor:
    sent = parts.contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received


class _Gather(torch.autograd.Function):
    """Rows [counts[n], 2] of all processes, one after another, on every process.

    What follows is computed by all of them alike, so backward is each one's own rows, not a sum over the processes.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int], place: int, group: Any) -> Tensor:
        ctx.own = slice(sum(counts[:place]), sum(counts[: place + 1]))
        padded = pad(rows, (0, 0, 0, max(counts) - len(rows)))
        gathered = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(gathered, padded, group=group)
        return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return grads[0][ctx.own].contiguous(), None, None, None
