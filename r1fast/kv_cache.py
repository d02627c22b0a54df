"""Keys and values of the sequences being generated, and the two attention contexts that fill and read them.

Dense: every row owns `max_length` slots, slot i holds position i. A prompt is run once, packed, by the training
attention, and its keys and values are copied to the rows of its group.
"""

# R rows of a decode batch, T packed prompt tokens, H query heads, K key/value heads, E head dimension,
# M slots of a row, L slots in use

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from r1fast.attention import PackedContext


class KVCache:
    """Key and value buffers [rows, K, M, E] of every layer, made when the layer is first written.

    On a CPU they are fp32 whatever the model's dtype: scores and sums are then fp32 as in the training attention, and
    the small products of a decode step run faster than in bf16. New buffers are zero: a slot not yet written is
    masked, and its weight of 0 must meet a finite value.
    """

    def __init__(self, *, rows: int, max_length: int) -> None:
        self.rows = rows
        self.max_length = max_length
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer that a prompt has been written to."""
        return self._layers[index]

    def write_prompt(self, index: int, key: Tensor, value: Tensor, rows: slice) -> None:
        """Copy a prompt's `key` and `value` [K, length, E] to the slots from 0 on of all `rows`."""
        if index not in self._layers:
            self._layers[index] = (self._buffer(key), self._buffer(value))
        for buffer, new in zip(self._layers[index], (key, value), strict=True):
            buffer[rows, :, : new.shape[1]] = new

    def move(self, source: npt.NDArray[np.int64], target: npt.NDArray[np.int64], length: int) -> None:
        """Copy the first `length` slots of rows `source` to rows `target`, which are disjoint from them."""
        for buffers in self._layers.values():
            for buffer in buffers:
                buffer[target, :, :length] = buffer[source, :, :length]

    def _buffer(self, like: Tensor) -> Tensor:
        dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        shape = (self.rows, like.shape[0], self.max_length, like.shape[2])
        return torch.zeros(shape, dtype=dtype, device=like.device)


class PromptSpan(NamedTuple):
    """A prompt's packed tokens `start` to `end`, and the rows that continue it."""

    start: int
    end: int
    rows: slice


class PrefillContext:
    """The training attention over packed prompts, which also writes their keys and values to the cache."""

    def __init__(self, cache: KVCache, packed: PackedContext, spans: Sequence[PromptSpan]) -> None:
        self.cache = cache
        self.packed = packed
        self.spans = spans

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionContext.attend; B is 1, S the packed tokens."""
        index = _layer_index(module)
        for start, end, rows in self.spans:
            self.cache.write_prompt(index, key[0, :, start:end], value[0, :, start:end], rows)
        return self.packed.attend(module, query, key, value, scaling)


class DecodeContext:
    """One new token in each of the first R rows: its key and value are written, then it attends to its row.

    `position_R` int64: where the new token of each row is; `length` exceeds all of those that matter (a row beyond it
    is unused and gets a meaningless, finite result). Index and mask are made once for all layers.
    """

    def __init__(self, cache: KVCache, position_R: Tensor, length: int) -> None:
        self.cache = cache
        self.position_R = position_R
        self.length = length
        self.visible_RL = torch.arange(length, device=position_R.device) <= position_R[:, None]
        self._by_heads: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See AttentionContext.attend; B is R, S is 1."""
        keys, values = self.cache.layer(_layer_index(module))
        num_rows, num_heads = query.shape[:2]
        num_kv_heads, length = keys.shape[1], self.length
        slot, bias = self._slots_and_bias(num_kv_heads)
        for buffer, new in ((keys, key), (values, value)):
            width = buffer.shape[3]
            buffer.view(-1, width).index_copy_(0, slot, new.reshape(-1, width).to(buffer.dtype))
        keys_RKLE, values_RKLE = keys[:num_rows, :, :length], values[:num_rows, :, :length]
        if query.device.type != "cpu":
            mask = self.visible_RL[:, None, None]
            gqa = num_heads != num_kv_heads
            out = F.scaled_dot_product_attention(
                query, keys_RKLE, values_RKLE, attn_mask=mask, scale=scaling, enable_gqa=gqa
            )
            return out.transpose(1, 2)
        # the queries that share a key head are the rows of one product: keys are read once, and never repeated
        queries = query.reshape(num_rows * num_kv_heads, num_heads // num_kv_heads, -1).to(keys.dtype)
        scores = torch.baddbmm(bias, queries, keys_RKLE.flatten(0, 1).transpose(1, 2), alpha=scaling)
        out = torch.bmm(scores.softmax(-1), values_RKLE.flatten(0, 1))
        return out.view(num_rows, 1, num_heads, -1).to(query.dtype)

    def _slots_and_bias(self, num_kv_heads: int) -> tuple[Tensor, Tensor]:
        """Where in a flattened buffer [rows K M] the new tokens go: [R K]; what is added to the scores: [R K, 1, L]."""
        if num_kv_heads not in self._by_heads:
            device = self.position_R.device
            head_RK = torch.arange(len(self.position_R) * num_kv_heads, device=device).view(-1, num_kv_heads)
            slot_RK = head_RK * self.cache.max_length + self.position_R[:, None]
            bias_RL = torch.zeros(self.visible_RL.shape, device=device).masked_fill_(~self.visible_RL, -torch.inf)
            self._by_heads[num_kv_heads] = (
                slot_RK.flatten(),
                bias_RL.repeat_interleave(num_kv_heads, dim=0).unsqueeze(1),
            )
        return self._by_heads[num_kv_heads]


def _layer_index(module: torch.nn.Module) -> int:
    index = getattr(module, "layer_idx", None)
    if not isinstance(index, int):
        raise ValueError(
            f"{type(module).__name__} has no layer_idx, by which its keys and values are kept; use a model whose "
            "attention modules are numbered"
        )
    return index
