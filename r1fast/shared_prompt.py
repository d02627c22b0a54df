"""Training attention for groups that store their prompt once: a prompt's tokens are computed once for all its samples.

With G samples of a prompt of M tokens and completions of L, a step computes M + G L tokens instead of G (M + L). The
mathematics is that of separate sequences: a completion's token sees its prompt and its own past; the prompt's hidden
states and gradients serve all of its completions.
"""

# T packed tokens, S segments, H query heads, K key/value heads, E head dimension, R rows of a bucket,
# L its longest completion, M its longest prompt

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from r1fast.attention import PackedContext, length_buckets


class SharedPromptContext:
    """Segments with parents: a root is causal in itself, a child sees its whole parent and its own past.

    `cu_seqlens`: int32 [S+1] over T. `parent`: int32 [S], -1 for a root, else the number of an earlier root. Runs one
    causal SDPA call per bucket of roots and one masked call per bucket of children; indices are computed once, on first
    use, for all layers. CPU and fp32 CUDA; ValueError for a parent that is no earlier root.
    """

    def __init__(self, cu_seqlens: Tensor, parent: Tensor, device: torch.device) -> None:
        bounds, self.parents = cu_seqlens.tolist(), parent.tolist()
        self.starts, self.lengths = bounds[:-1], [end - start for start, end in pairwise(bounds)]
        for number, root in enumerate(self.parents):
            if root >= 0 and (root >= number or self.parents[root] >= 0 or not self.lengths[root]):
                raise ValueError(
                    f"segment {number} has parent {root}, which must be an earlier, non-empty root segment"
                )
        self.num_tokens, self.device = bounds[-1], device
        self._plan: _Plan | None = None

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionContext.attend; B must be 1 and S the number of packed tokens."""
        if query.shape[0] != 1 or query.shape[2] != self.num_tokens or key.shape[2] != self.num_tokens:
            raise ValueError(
                f"packed attention wants [1, heads, {self.num_tokens}, E], got query {tuple(query.shape)} and key "
                f"{tuple(key.shape)}; pass use_cache=False and token ids of shape [1, T]"
            )
        if self._plan is None:
            self._plan = _Plan.of(self.starts, self.lengths, self.parents, self.device)
        plan, dtype = self._plan, query.dtype
        if query.device.type == "cpu":  # torch's CPU bf16 backward is up to 3 times slower than fp32, never faster
            query, key, value = query.float(), key.float(), value.float()
        roots = plan.roots
        q, k, v = (x.index_select(2, plan.root_tokens) for x in (query, key, value))
        outs = [roots.attend(module, q, k, v, scaling)[0]]
        query_THE, key_TKE, value_TKE = (x[0].transpose(0, 1) for x in (query, key, value))
        gqa = query.shape[1] != key.shape[1]
        for bucket in plan.children:
            rows, longest = bucket.query.shape
            q = _take(query_THE, bucket.query)
            k, v = _take(key_TKE, bucket.key), _take(value_TKE, bucket.key)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bucket.mask, scale=scaling, enable_gqa=gqa)
            outs.append(out.transpose(1, 2).reshape(rows * longest, *out.shape[1::2]).index_select(0, bucket.real))
        return torch.cat(outs).index_select(0, plan.order).to(dtype).unsqueeze(0)


def _take(x: Tensor, index_RL: Tensor) -> Tensor:
    """Packed [T, H, E] to padded [R, H, L, E]."""
    return x.index_select(0, index_RL.flatten()).view(*index_RL.shape, *x.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class _Bucket:
    """Children of like length. `query` int64 [R, L] and `key` int64 [R, M + L]: packed tokens, pads repeat one;
    `mask` bool [R, 1, L, M + L]: what may be seen; `real` int64: the slots of R L that are no pads.
    """

    query: Tensor
    key: Tensor
    mask: Tensor
    real: Tensor


@dataclass(frozen=True)
class _Plan:
    """`root_tokens`: the packed tokens of roots, in order; `order` int64 [T]: where each packed token's result is among
    the concatenated results of roots and buckets.
    """

    root_tokens: Tensor
    roots: PackedContext
    children: list[_Bucket]
    order: Tensor

    @staticmethod
    def of(starts: list[int], lengths: list[int], parents: list[int], device: torch.device) -> _Plan:
        start_S, length_S, parent_S = (torch.tensor(x, dtype=torch.int64) for x in (starts, lengths, parents))
        segment_T = torch.arange(len(lengths)).repeat_interleave(length_S)
        root_tokens = (parent_S[segment_T] < 0).nonzero()[:, 0]
        root_lengths = length_S[parent_S < 0]
        root_bounds = torch.cat([root_lengths.new_zeros(1), root_lengths.cumsum(0)]).to(torch.int32)
        children, written = [], [root_tokens]
        child_lengths = [length if parent >= 0 else 0 for length, parent in zip(lengths, parents, strict=True)]
        for numbers in length_buckets(child_lengths):
            rows = torch.tensor(numbers)
            root = parent_S[rows]
            own = torch.arange(int(length_S[rows].max()))
            prompt = torch.arange(int(length_S[root].max()))
            query = start_S[rows, None] + torch.minimum(own, length_S[rows, None] - 1)
            before = start_S[root, None] + torch.minimum(prompt, length_S[root, None] - 1)
            sees_prompt = (prompt < length_S[root, None])[:, None, :].expand(-1, len(own), -1)
            sees_own = (own[None, :] <= own[:, None]).expand(len(rows), -1, -1)
            real = (own < length_S[rows, None]).flatten().nonzero()[:, 0]
            children.append(
                _Bucket(
                    query.to(device),
                    torch.cat([before, query], 1).to(device),
                    torch.cat([sees_prompt, sees_own], 2)[:, None].to(device),
                    real.to(device),
                )
            )
            written.append(query.flatten()[real])
        order = torch.empty(int(length_S.sum()), dtype=torch.int64)
        position = torch.cat(written)
        order[position] = torch.arange(len(position))
        roots = PackedContext(root_bounds, device)
        return _Plan(root_tokens.to(device), roots, children, order.to(device))
