"""A layer's attention in a decode step: kv_append, paged_decode and attention_merge, checked once and called often.

Checking and describing some twenty tensors takes Python longer than a small model's attention takes a CPU.
"""

# R rows, H query heads, K KV heads, D head_dim, P pages, M pages of a table's row, G groups

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1fast.ops.decode_plan import DecodePlan
from r1fast.ops.kv_append import kv_append_params
from r1fast.ops.paged_decode import attention_merge_params, paged_decode_params
from r1fast.ops.run import run


class DecodeAttention:
    """One layer's pages [P, K, 64, D] and what all layers of a batch share; see paged_decode for their meaning.

    All of these are held: they must stay where they are, their contents may change between calls.
    """

    def __init__(
        self,
        *,
        plan: DecodePlan,
        key_pages: Tensor,
        value_pages: Tensor,
        slot_R: Tensor,
        suffix_pages_RM: Tensor,
        prefix_pages_GM: Tensor,
        scale: float,
    ) -> None:
        self.plan, self.key_pages, self.value_pages, self.slot_R = plan, key_pages, value_pages, slot_R
        self.suffix_pages_RM, self.prefix_pages_GM, self.scale = suffix_pages_RM, prefix_pages_GM, scale
        self._layout: object = None
        self._append: Any = None
        self._decode: Any = None
        self._merge: Any = None

    def __call__(self, query_RHD: Tensor, key_RKD: Tensor, value_RKD: Tensor) -> Tensor:
        """Write the new keys and values, attend: [R, H, D] like the query. Raises ValueError as the three ops do."""
        output_RHD = torch.empty(query_RHD.shape, dtype=query_RHD.dtype, device=query_RHD.device)
        tensors = (query_RHD, key_RKD, value_RKD)
        layout = [(x.shape, x.stride(), x.dtype, x.device, x.data_ptr() % 16) for x in tensors]
        if layout != self._layout:
            self._append = kv_append_params(key_RKD, value_RKD, self.key_pages, self.value_pages, self.slot_R)
            self._decode = paged_decode_params(
                self.plan,
                query_RHD,
                self.key_pages,
                self.value_pages,
                self.suffix_pages_RM,
                self.prefix_pages_GM,
                self.scale,
            )
            self._merge = attention_merge_params(self.plan, output_RHD)
            self._layout = layout
        self._append.key, self._append.value = key_RKD.data_ptr(), value_RKD.data_ptr()
        self._decode.query, self._merge.output = query_RHD.data_ptr(), output_RHD.data_ptr()
        run("kv_append", self._append, self.key_pages)
        run("paged_decode", self._decode, self.key_pages)
        run("attention_merge", self._merge, self.key_pages)
        return output_RHD
