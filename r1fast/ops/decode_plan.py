"""Plans a decode step on the device: lengths and groups of a batch -> the work items of paged_decode.

A sequence is two segments, each cut into chunks of 512 tokens from its own start: its group's prefix, read once for all
of the group's sequences, and its own suffix. One plan serves every layer of the step.
"""

# S sequences (rows of the batch), G groups

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from r1fast.ops.checks import CHUNK_TOKENS, PAGE_TOKENS, check_gqa, check_tensor
from r1fast.ops.compiled import compiled_op
from r1fast.ops.extension import extension
from r1fast.ops.run import run

ITEM_WORDS = 8
STATUS_WORDS = 4
FAULTS = {
    1: "a suffix's length is negative or more than its page table holds",
    2: "a prefix's length is negative or more than its page table holds",
    4: "a row's group is not one of the plan's",
    8: "more work items than max_items",
    16: "more partial results than max_partials",
}


@dataclass(frozen=True, kw_only=True)
class DecodePlan:
    """Buffers of one step, whose addresses stay: a CUDA graph may hold them.

    `partial_output` [max_partials, H, D] and `partial_lse` [max_partials, H] (fp32) are where paged_decode leaves each
    (sequence, chunk)'s result, and attention_merge finds it.
    """

    num_rows: int
    num_groups: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_suffix_tokens: int
    max_prefix_tokens: int
    items: Tensor  # int32 [max_items, 8]
    status: Tensor  # int32 [4]: items, partial results, faults, items wanted
    members_S: Tensor  # int32, rows by group
    partial_begin: Tensor  # int32 [S + 1]
    partial_output: Tensor
    partial_lse: Tensor

    @classmethod
    def allocate(
        cls,
        *,
        num_rows: int,
        num_groups: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_suffix_tokens: int,
        max_prefix_tokens: int,
        max_partials: int | None = None,
        device: torch.device | str = "cpu",
    ) -> DecodePlan:
        """Room for every batch of these sizes, or for `max_partials` (sequence, chunk) pairs where that is fewer.

        `max_*_tokens` is what a row of the page tables holds: multiples of 64. Raises ValueError.
        """
        check_gqa(num_heads, num_kv_heads)
        if num_rows < 1 or num_groups < 0:
            raise ValueError(f"num_rows = {num_rows} must be positive, num_groups = {num_groups} not negative")
        for name, value in (("max_suffix_tokens", max_suffix_tokens), ("max_prefix_tokens", max_prefix_tokens)):
            if value < 0 or value % PAGE_TOKENS:
                raise ValueError(f"{name} = {value} must be a multiple of {PAGE_TOKENS}, not negative")
        chunks = -(-max_suffix_tokens // CHUNK_TOKENS) + -(-max_prefix_tokens // CHUNK_TOKENS)
        most = max(1, num_rows * chunks)
        max_partials = most if max_partials is None else min(most, max_partials)
        if max_partials < 1:
            raise ValueError(f"max_partials = {max_partials} must be positive")
        place = torch.device(device)

        def integers(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=place)

        return cls(
            num_rows=num_rows,
            num_groups=num_groups,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_suffix_tokens=max_suffix_tokens,
            max_prefix_tokens=max_prefix_tokens,
            items=integers(max_partials, ITEM_WORDS),  # an item has at least one partial result
            status=integers(STATUS_WORDS),
            members_S=integers(num_rows),
            partial_begin=integers(num_rows + 1),
            partial_output=torch.zeros(max_partials, num_heads, head_dim, device=place),
            partial_lse=torch.zeros(max_partials, num_heads, device=place),
        )

    def check(self) -> None:
        """Raises ValueError for what was wrong with the last planned batch. On CUDA it waits for the device."""
        num_items, num_partials, faults, wanted = self.status.tolist()
        if faults:
            found = "; ".join(text for bit, text in FAULTS.items() if faults & bit)
            raise ValueError(
                f"the decode plan cannot be right: {found} ({wanted} items for {self.items.shape[0]} places, "
                f"{num_partials} partial results for {self.partial_lse.shape[0]}, {num_items} items planned)"
            )


@compiled_op(writes=("plan.items", "plan.status", "plan.members_S", "plan.partial_begin"))
def decode_plan(plan: DecodePlan, suffix_length_S: Tensor, group_S: Tensor, prefix_length_G: Tensor) -> None:
    """Fill `plan` for a batch. All int32: tokens of each row's own segment, its group (-1: none), tokens of prefixes.

    A row of length 0 without a group rests: its attention is zero. On the CPU a length or a group that is out of range
    raises ValueError; on CUDA it counts as nothing, and `plan.check()` tells.
    """
    device = plan.status.device
    check_tensor("suffix_length_S", suffix_length_S, torch.int32, (plan.num_rows,), device)
    check_tensor("group_S", group_S, torch.int32, (plan.num_rows,), device)
    check_tensor("prefix_length_G", prefix_length_G, torch.int32, (plan.num_groups,), device)
    params = extension().DecodePlanParams(
        suffix_length=suffix_length_S.data_ptr(),
        group=group_S.data_ptr(),
        prefix_length=prefix_length_G.data_ptr(),
        member=plan.members_S.data_ptr(),
        partial_begin=plan.partial_begin.data_ptr(),
        item=plan.items.data_ptr(),
        status=plan.status.data_ptr(),
        num_rows=plan.num_rows,
        num_groups=plan.num_groups,
        max_suffix_tokens=plan.max_suffix_tokens,
        max_prefix_tokens=plan.max_prefix_tokens,
        max_items=plan.items.shape[0],
        max_partials=plan.partial_lse.shape[0],
        members_per_item=extension().prefix_members(plan.head_dim, plan.num_heads // plan.num_kv_heads),
    )
    run("decode_plan", params, plan.status)
    if device.type == "cpu":
        plan.check()
