"""Attention of one new token of each sequence over its pages: a group's prefix is read once, each suffix by itself."""

# S sequences (rows of the batch), G groups, H query heads, K KV heads, D head_dim, P pages, M pages of a table's row

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from r1fast.ops.checks import DTYPES, PAGE_TOKENS, check_gqa, check_heads, check_pages, check_tensor, pointer
from r1fast.ops.compiled import compiled_op
from r1fast.ops.decode_plan import DecodePlan
from r1fast.ops.extension import extension
from r1fast.ops.run import run


@compiled_op(writes=("plan.partial_output", "plan.partial_lse"))
def paged_decode(
    plan: DecodePlan,
    query_SHD: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    suffix_pages_SM: Tensor,
    prefix_pages_GM: Tensor,
    *,
    scale: float | None = None,
) -> None:
    """Attention within each chunk of the planned batch, to `plan.partial_output` and `plan.partial_lse`.

    `key_pages` and `value_pages` are [P, K, 64, D] of one layer; a row of the page tables (int32) lists the pages of a
    segment in order, of which those that its length needs are read. `scale` is 1 / sqrt(D) unless given. The result of
    a (sequence, chunk) is bitwise the same in every batch. Page ids beyond P are a ValueError on the CPU.
    """
    params = paged_decode_params(plan, query_SHD, key_pages, value_pages, suffix_pages_SM, prefix_pages_GM, scale)
    run("paged_decode", params, key_pages)


def paged_decode_params(
    plan: DecodePlan,
    query_SHD: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    suffix_pages_SM: Tensor,
    prefix_pages_GM: Tensor,
    scale: float | None,
) -> Any:
    """What the extension's paged_decode takes, checked."""
    num_pages, num_kv_heads, head_dim = check_pages(key_pages, value_pages)
    device = key_pages.device
    check_heads("query_SHD", query_SHD, (plan.num_rows, plan.num_heads, head_dim), key_pages)
    if (plan.num_kv_heads, plan.head_dim, plan.status.device) != (num_kv_heads, head_dim, device):
        raise ValueError(
            f"the plan is for {plan.num_kv_heads} KV heads of {plan.head_dim} on {plan.status.device}, "
            f"the pages have {num_kv_heads} of {head_dim} on {device}"
        )
    check_gqa(plan.num_heads, num_kv_heads)
    tables = {
        "suffix_pages_SM": (suffix_pages_SM, (plan.num_rows, plan.max_suffix_tokens // PAGE_TOKENS)),
        "prefix_pages_GM": (prefix_pages_GM, (plan.num_groups, plan.max_prefix_tokens // PAGE_TOKENS)),
    }
    for name, (table, shape) in tables.items():
        check_tensor(name, table, torch.int32, shape, device)
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    if not (scale > 0 and math.isfinite(scale)):
        raise ValueError(f"scale = {scale} must be positive and finite")
    return extension().PagedDecodeParams(
        query=query_SHD.data_ptr(),
        key_pages=key_pages.data_ptr(),
        value_pages=value_pages.data_ptr(),
        suffix_pages=suffix_pages_SM.data_ptr(),
        prefix_pages=prefix_pages_GM.data_ptr(),
        item=plan.items.data_ptr(),
        status=plan.status.data_ptr(),
        member=plan.members_S.data_ptr(),
        partial_begin=plan.partial_begin.data_ptr(),
        partial_output=plan.partial_output.data_ptr(),
        partial_lse=plan.partial_lse.data_ptr(),
        query_row_stride=query_SHD.stride(0),
        query_head_stride=query_SHD.stride(1),
        page_stride=key_pages.stride(0),
        page_head_stride=key_pages.stride(1),
        suffix_table_stride=suffix_pages_SM.shape[1],
        prefix_table_stride=prefix_pages_GM.shape[1],
        num_heads=plan.num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        num_pages=num_pages,
        max_items=plan.items.shape[0],
        scale=scale,
        dtype=DTYPES[key_pages.dtype],
    )


@compiled_op(writes=("output_SHD", "lse_SH"))
def attention_merge(plan: DecodePlan, output_SHD: Tensor, lse_SH: Tensor | None = None) -> None:
    """Merge each row's partial results in the order of its tokens to `output_SHD`, and log-sum-exp (fp32) to `lse_SH`.

    A row without tokens gets zeros and -inf.
    """
    run("attention_merge", attention_merge_params(plan, output_SHD, lse_SH), output_SHD)


def attention_merge_params(plan: DecodePlan, output_SHD: Tensor, lse_SH: Tensor | None = None) -> Any:
    """What the extension's attention_merge takes, checked."""
    device = plan.status.device
    if output_SHD.dtype not in DTYPES or output_SHD.device != device:
        raise ValueError(f"output_SHD must be bfloat16, float16 or float32 on {device}, it is of {output_SHD.dtype}")
    check_heads("output_SHD", output_SHD, (plan.num_rows, plan.num_heads, plan.head_dim), output_SHD)
    if lse_SH is not None:
        check_tensor("lse_SH", lse_SH, torch.float32, (plan.num_rows, plan.num_heads), device)
    return extension().AttentionMergeParams(
        partial_output=plan.partial_output.data_ptr(),
        partial_lse=plan.partial_lse.data_ptr(),
        partial_begin=plan.partial_begin.data_ptr(),
        output=output_SHD.data_ptr(),
        lse=pointer(lse_SH),
        output_row_stride=output_SHD.stride(0),
        output_head_stride=output_SHD.stride(1),
        num_rows=plan.num_rows,
        num_heads=plan.num_heads,
        head_dim=plan.head_dim,
        dtype=DTYPES[output_SHD.dtype],
    )
