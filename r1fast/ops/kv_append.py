"""Writes keys and values of new tokens to their pages; on the way adds biases, normalises heads and rotates them."""

# T tokens, H query heads, K KV heads, D head_dim, P pages, N positions

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r1fast.ops.checks import DTYPES, check_heads, check_pages, check_tensor, pointer
from r1fast.ops.compiled import compiled_op
from r1fast.ops.extension import extension
from r1fast.ops.run import run


@dataclass(frozen=True, kw_only=True)
class HeadTreatment:
    """What happens to the heads of new tokens, in this order: bias, RMS norm of each head, rotation (RoPE).

    The rotation turns the numbers i and i + D / 2 together, as transformers' `rotate_half` does. Everything is computed
    in fp32 and rounded once. All tensors but `cosine_ND` and `sine_ND` (fp32, [positions, D / 2]) have the cache's
    dtype; None leaves its step out.
    """

    query_bias_HD: Tensor | None = None
    key_bias_KD: Tensor | None = None
    value_bias_KD: Tensor | None = None
    query_norm_D: Tensor | None = None
    key_norm_D: Tensor | None = None
    norm_eps: float = 1e-6
    cosine_ND: Tensor | None = None
    sine_ND: Tensor | None = None


NOTHING = HeadTreatment()


@compiled_op(writes=("key_pages", "value_pages", "query_out_THD"))
def kv_append(
    key_TKD: Tensor,
    value_TKD: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    slot_T: Tensor,
    *,
    query_THD: Tensor | None = None,
    query_out_THD: Tensor | None = None,
    position_T: Tensor | None = None,
    treatment: HeadTreatment = NOTHING,
) -> None:
    """Write K and V of T tokens to `key_pages` and `value_pages` [P, K, 64, D], and treated queries to `query_out_THD`.

    `slot_T` (int32) is page * 64 + place in the page; a token with a negative slot is written nowhere. `position_T`
    (int32) is needed for the rotation. `query_out_THD` may be `query_THD` itself. No two tokens may have one slot.

    Raises ValueError for what does not fit; for a slot beyond the pages or a position beyond `cosine_ND` on the CPU
    only: on CUDA such a token is written nowhere, or rotated by the last position, because looking would synchronise.
    """
    params = kv_append_params(
        key_TKD, value_TKD, key_pages, value_pages, slot_T, query_THD, query_out_THD, position_T, treatment
    )
    if params.num_tokens:
        run("kv_append", params, key_pages)


def kv_append_params(
    key_TKD: Tensor,
    value_TKD: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    slot_T: Tensor,
    query_THD: Tensor | None = None,
    query_out_THD: Tensor | None = None,
    position_T: Tensor | None = None,
    treatment: HeadTreatment = NOTHING,
) -> Any:
    """What the extension's kv_append takes, checked."""
    num_pages, num_kv_heads, head_dim = check_pages(key_pages, value_pages)
    num_tokens, device, dtype = key_TKD.shape[0], key_pages.device, key_pages.dtype
    for name, tensor in (("key_TKD", key_TKD), ("value_TKD", value_TKD)):
        check_heads(name, tensor, (num_tokens, num_kv_heads, head_dim), key_pages)
    check_tensor("slot_T", slot_T, torch.int32, (num_tokens,), device)
    num_heads = 0
    if query_THD is not None:
        num_heads = query_THD.shape[1] if query_THD.ndim == 3 else 0
        check_heads("query_THD", query_THD, (num_tokens, num_heads, head_dim), key_pages)
        if query_out_THD is None:
            raise ValueError("query_THD is given, query_out_THD is not; pass query_THD for both to overwrite it")
        check_heads("query_out_THD", query_out_THD, (num_tokens, num_heads, head_dim), key_pages)
    _check_treatment(treatment, num_heads, num_kv_heads, head_dim, key_pages)
    if treatment.cosine_ND is not None:
        if position_T is None:
            raise ValueError("cosine_ND needs position_T, int32 [tokens]")
        check_tensor("position_T", position_T, torch.int32, (num_tokens,), device)

    params = extension().KvAppendParams(
        query=pointer(query_THD),
        key=key_TKD.data_ptr(),
        value=value_TKD.data_ptr(),
        query_out=pointer(query_out_THD),
        key_pages=key_pages.data_ptr(),
        value_pages=value_pages.data_ptr(),
        slot=slot_T.data_ptr(),
        position=pointer(position_T),
        query_bias=pointer(treatment.query_bias_HD),
        key_bias=pointer(treatment.key_bias_KD),
        value_bias=pointer(treatment.value_bias_KD),
        query_norm=pointer(treatment.query_norm_D),
        key_norm=pointer(treatment.key_norm_D),
        cosine=pointer(treatment.cosine_ND),
        sine=pointer(treatment.sine_ND),
        key_token_stride=key_TKD.stride(0),
        key_head_stride=key_TKD.stride(1),
        value_token_stride=value_TKD.stride(0),
        value_head_stride=value_TKD.stride(1),
        page_stride=key_pages.stride(0),
        page_head_stride=key_pages.stride(1),
        num_tokens=num_tokens,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        num_pages=num_pages,
        num_positions=0 if treatment.cosine_ND is None else treatment.cosine_ND.shape[0],
        norm_eps=treatment.norm_eps,
        dtype=DTYPES[dtype],
    )
    if query_THD is not None and query_out_THD is not None:
        params.query_token_stride, params.query_head_stride, _ = query_THD.stride()
        params.query_out_token_stride, params.query_out_head_stride, _ = query_out_THD.stride()
    return params


def _check_treatment(treatment: HeadTreatment, num_heads: int, num_kv_heads: int, head_dim: int, like: Tensor) -> None:
    shapes = {
        "query_bias_HD": (num_heads, head_dim),
        "key_bias_KD": (num_kv_heads, head_dim),
        "value_bias_KD": (num_kv_heads, head_dim),
        "query_norm_D": (head_dim,),
        "key_norm_D": (head_dim,),
    }
    for name, shape in shapes.items():
        tensor = getattr(treatment, name)
        if tensor is None:
            continue
        if name.startswith("query") and not num_heads:
            raise ValueError(f"{name} is given, query_THD is not")
        check_tensor(name, tensor, like.dtype, shape, like.device)
        if tensor.data_ptr() % 16:
            raise ValueError(f"{name} must begin on 16 bytes; call .clone()")
    cosine, sine = treatment.cosine_ND, treatment.sine_ND
    if (cosine is None) != (sine is None):
        raise ValueError("cosine_ND and sine_ND come together")
    if cosine is not None and sine is not None:
        num_positions = cosine.shape[0]
        for name, tensor in (("cosine_ND", cosine), ("sine_ND", sine)):
            check_tensor(name, tensor, torch.float32, (num_positions, head_dim // 2), like.device)
        if not num_positions:
            raise ValueError("cosine_ND has no positions")
