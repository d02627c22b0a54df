"""Attention over the paged cache, as the model's layers call it: a chunk of prompts, and one new token of each row."""

# B batch, S tokens of one call, T packed prompt tokens, R rows, H query heads, K KV heads, E head_dim, L tokens before

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from r1fast.attention import PackedContext, heads_for
from r1fast.ops.decode_attention import DecodeAttention
from r1fast.ops.decode_plan import DecodePlan
from r1fast.ops.kv_append import kv_append
from r1fast.rollout.page_store import PageStore


class PrefillContext:
    """Causal attention of packed prompts, which also writes their keys and values to their pages.

    `slot_T`: int32 [T], kv_append's slots of the packed tokens; -1 for padding. A GPU runs the training attention, a
    CPU one prompt after the other, so that what a prompt gives is bitwise the same in any company (a bucket's padding
    would change the order of its sums).
    """

    def __init__(self, store: PageStore, packed: PackedContext, slot_T: Tensor) -> None:
        self.store, self.packed, self.slot_T = store, packed, slot_T

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionContext.attend; B is 1, S is T."""
        layer = layer_index(module)
        _append(self.store, layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self.slot_T)
        if query.device.type != "cpu":
            return self.packed.attend(module, query, key, value, scaling)
        return attend_prompts(query, key, value, self.packed.lengths, scaling)


class ChunkContext:
    """A further chunk of one long prompt: it sees the L tokens that are in `pages` already, and itself.

    `pages`: int64, the prompt's pages in order. `slot_T` as in PrefillContext; its -1 are padding at the chunk's end.
    """

    def __init__(self, store: PageStore, pages: Tensor, num_before: int, slot_T: Tensor) -> None:
        self.store, self.pages, self.num_before, self.slot_T = store, pages, num_before, slot_T

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionContext.attend; B is 1, S the chunk's tokens."""
        layer = layer_index(module)
        _append(self.store, layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self.slot_T)
        before = [
            pages[layer, self.pages].transpose(0, 1).flatten(1, 2)[:, : self.num_before]
            for pages in (self.store.key, self.store.value)
        ]
        keys, values = (torch.cat([old, new[0]], 1)[None] for old, new in zip(before, (key, value), strict=True))
        return attend_chunk(query, keys, values, self.num_before, scaling)


class DecodeContext:
    """One new token in each of the plan's rows: it is written to its page, then it attends to its row's pages.

    `slot_R` int32 [R]: kv_append's slots, -1 for a row that rests. The page tables are those of paged_decode, `plan` is
    filled before each step. One context serves every step of a batch of this size.
    """

    def __init__(
        self, store: PageStore, plan: DecodePlan, slot_R: Tensor, suffix_pages_RM: Tensor, prefix_pages_GM: Tensor
    ) -> None:
        self.store, self.plan, self.slot_R = store, plan, slot_R
        self.suffix_pages_RM, self.prefix_pages_GM = suffix_pages_RM, prefix_pages_GM
        self._layers: dict[tuple[int, float], DecodeAttention] = {}

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionContext.attend; B is R, S is 1."""
        layer = layer_index(module)
        attention = self._layers.get((layer, scaling))
        if attention is None:
            attention = self._layers[layer, scaling] = DecodeAttention(
                plan=self.plan,
                key_pages=self.store.key[layer],
                value_pages=self.store.value[layer],
                slot_R=self.slot_R,
                suffix_pages_RM=self.suffix_pages_RM,
                prefix_pages_GM=self.prefix_pages_GM,
                scale=scaling,
            )
        return attention(query[:, :, 0], key[:, :, 0], value[:, :, 0])[:, None]


def attend_prompts(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scaling: float) -> Tensor:
    """Causal attention of packed prompts on a CPU, one after the other: [1, T, H, E] of the query's dtype."""
    dtype, gqa = query.dtype, query.shape[1] != key.shape[1]
    queries, keys, values = (torch.split(x.float(), list(lengths), dim=2) for x in (query, key, value))
    outs = [
        F.scaled_dot_product_attention(*qkv, None, 0.0, True, scale=scaling, enable_gqa=gqa)
        for qkv in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(outs, 2).transpose(1, 2).to(dtype)


def attend_chunk(query: Tensor, keys: Tensor, values: Tensor, num_before: int, scaling: float) -> Tensor:
    """Attention [1, S, H, E] of a prompt's S tokens from `num_before` on to the keys up to each of them."""
    dtype = query.dtype
    if query.device.type == "cpu":  # as the training attention does
        query, keys, values = query.float(), keys.float(), values.float()
    place = torch.arange(query.shape[2], device=query.device).unsqueeze(1)
    visible = torch.arange(keys.shape[2], device=query.device) <= num_before + place
    keys, values, gqa = heads_for(query, keys, values)
    out = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible, scale=scaling, enable_gqa=gqa)
    return out.transpose(1, 2).to(dtype)


def _append(store: PageStore, layer: int, key_TKE: Tensor, value_TKE: Tensor, slot_T: Tensor) -> None:
    if key_TKE.shape[2] != value_TKE.shape[2]:
        raise ValueError(
            f"keys have {key_TKE.shape[2]} numbers a head and values {value_TKE.shape[2]}: the paged cache wants the "
            "same; use another model"
        )
    kv_append(key_TKE, value_TKE, store.key[layer], store.value[layer], slot_T)


def layer_index(module: torch.nn.Module) -> int:
    """The number of an attention layer, by which its pages are found. Raises ValueError."""
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise ValueError(
            f"{type(module).__name__} has no layer_idx, by which its keys and values are kept; use a model whose "
            "attention modules are numbered"
        )
    return index
