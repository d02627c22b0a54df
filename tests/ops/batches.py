"""Decode batches on a paged cache with shuffled pages, where every number that nobody wrote is NaN; exact attention."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from r1fast.ops.decode_plan import DecodePlan, decode_plan
from r1fast.ops.paged_decode import attention_merge, paged_decode

PAGE = 64
# err(op, exact) may be twice that of the same sums in the dtype itself, design.md section 9.18; measured per case below
UNIT = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-24}


@dataclass(frozen=True, kw_only=True)
class Shape:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16


@dataclass
class Batch:
    """Rows of (group or -1, tokens of their own), and their groups' prefix lengths."""

    shape: Shape
    rows: list[tuple[int, int]]
    prefixes: list[int]
    seed: int = 0
    keys: dict[tuple[str, int], Tensor] = field(
        default_factory=dict, repr=False
    )  # (segment kind, number) -> [tokens, K, D]
    values: dict[tuple[str, int], Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        shape, generator = self.shape, torch.Generator().manual_seed(self.seed)
        lengths = {("prefix", g): tokens for g, tokens in enumerate(self.prefixes)}
        lengths |= {("suffix", row): tokens for row, (_, tokens) in enumerate(self.rows)}
        pages_of = {segment: -(-tokens // PAGE) for segment, tokens in lengths.items()}
        num_pages = sum(pages_of.values()) + 3
        free = torch.randperm(num_pages, generator=generator).tolist()
        self.key_pages = torch.full((num_pages, shape.num_kv_heads, PAGE, shape.head_dim), torch.nan, dtype=shape.dtype)
        self.value_pages = self.key_pages.clone()
        self.max_suffix = PAGE * max(1, *(pages_of["suffix", row] for row in range(len(self.rows))), 1)
        self.max_prefix = PAGE * max([1, *(pages_of["prefix", g] for g in range(len(self.prefixes)))])
        self.suffix_pages = torch.full((len(self.rows), self.max_suffix // PAGE), -1, dtype=torch.int32)
        self.prefix_pages = torch.full((len(self.prefixes), self.max_prefix // PAGE), -1, dtype=torch.int32)
        for (kind, number), tokens in lengths.items():
            pages = [free.pop() for _ in range(pages_of[kind, number])]
            table = self.prefix_pages if kind == "prefix" else self.suffix_pages
            table[number, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
            size = (tokens, shape.num_kv_heads, shape.head_dim)
            for store, cache in ((self.keys, self.key_pages), (self.values, self.value_pages)):
                store[kind, number] = torch.randn(size, generator=generator).to(shape.dtype)
                for place, page in enumerate(pages):
                    part = store[kind, number][place * PAGE : (place + 1) * PAGE]
                    cache[page, :, : part.shape[0]] = part.transpose(0, 1)
        size = (len(self.rows), shape.num_heads, shape.head_dim)
        self.query = (2 * torch.randn(size, generator=generator)).to(shape.dtype)

    def plan(self) -> DecodePlan:
        plan = DecodePlan.allocate(
            num_rows=len(self.rows),
            num_groups=len(self.prefixes),
            num_heads=self.shape.num_heads,
            num_kv_heads=self.shape.num_kv_heads,
            head_dim=self.shape.head_dim,
            max_suffix_tokens=self.max_suffix,
            max_prefix_tokens=self.max_prefix,
        )
        plan.partial_output.fill_(torch.nan)
        plan.partial_lse.fill_(torch.nan)
        self.replan(plan)
        return plan

    def replan(self, plan: DecodePlan) -> None:
        groups, lengths = zip(*self.rows, strict=True)
        decode_plan(
            plan,
            torch.tensor(lengths, dtype=torch.int32),
            torch.tensor(groups, dtype=torch.int32),
            torch.tensor(self.prefixes, dtype=torch.int32),
        )

    def attend(self, plan: DecodePlan | None = None) -> tuple[Tensor, Tensor]:
        """Output [S, H, D] and log-sum-exp [S, H] by the ops."""
        plan = self.plan() if plan is None else plan
        paged_decode(plan, self.query, self.key_pages, self.value_pages, self.suffix_pages, self.prefix_pages)
        output, lse = torch.full_like(self.query, torch.nan), torch.full(self.query.shape[:2], torch.nan)
        attention_merge(plan, output, lse)
        return output, lse

    def exact(self) -> tuple[Tensor, Tensor, Tensor]:
        """Output and log-sum-exp in fp64, and the greatest error that rounding may make in each row [S, 1, 1]."""
        gqa = self.shape.num_heads // self.shape.num_kv_heads
        outputs, lses = torch.zeros(self.query.shape, dtype=torch.float64), torch.empty(self.query.shape[:2]).double()
        bounds = torch.zeros(len(self.rows), 1, 1, dtype=torch.float64)
        for row, (group, _) in enumerate(self.rows):
            segments = ([("prefix", group)] if group >= 0 else []) + [("suffix", row)]
            key = torch.cat([self.keys[s] for s in segments]).double().repeat_interleave(gqa, dim=1)
            value = torch.cat([self.values[s] for s in segments]).double().repeat_interleave(gqa, dim=1)
            scores = torch.einsum("hd,thd->ht", self.query[row].double(), key) * self.shape.head_dim**-0.5
            lses[row] = scores.logsumexp(-1)
            if not key.shape[0]:
                continue
            weights = scores.softmax(-1)
            outputs[row] = torch.einsum("ht,thd->hd", weights, value)
            # the weights and the output are rounded to the dtype; scores are fp32 sums of exact products
            spread = torch.einsum("ht,thd->hd", weights, value.abs()).max()
            score_error = 2.0**-22 * self.shape.head_dim**0.5 * scores.abs().max()
            bounds[row] = 2 * spread * (UNIT[self.shape.dtype] + score_error)
        return outputs, lses, bounds

    def without(self, gone: set[int]) -> Batch:
        """The same cache with some rows gone: the surviving rows with their data."""
        left = [row for row in range(len(self.rows)) if row not in gone]
        other = object.__new__(Batch)
        other.__dict__.update(self.__dict__)
        other.rows = [self.rows[row] for row in left]
        other.suffix_pages = self.suffix_pages[left].contiguous()
        other.query = self.query[left].contiguous()
        return other


def check(batch: Batch) -> tuple[Tensor, Tensor]:
    """Attend by the ops and compare with fp64; returns what the ops gave."""
    output, lse = batch.attend()
    exact, exact_lse, bounds = batch.exact()
    error = (output.double() - exact).abs()
    assert (error <= bounds + 1e-6).all(), f"{error.max()} over {bounds.max()}"
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-5, atol=2e-4)
    return output, lse
