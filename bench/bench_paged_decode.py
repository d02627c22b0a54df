"""Decode attention on pages beside PyTorch's SDPA: `python -m bench.bench_paged_decode [--threads N ...]`.

SDPA gets K and V that are already gathered and padded, which is not timed, in two ways: with enable_gqa, and with the
query heads of a KV head as the rows of one query, which is several times faster. The speedup is over the faster one.
decode_plan, paged_decode and attention_merge read the pages. All are checked against fp64 first, then run in turn,
round after round; a figure is the median of the rounds, a ratio the median of the rounds' ratios. Bytes: every K and V
of the batch once, of a shared prefix once for its group; FLOPs: 4 D for each (query head, token).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from r1fast.ops.decode_plan import DecodePlan, decode_plan
from r1fast.ops.extension import extension
from r1fast.ops.paged_decode import attention_merge, paged_decode

PAGE = 64
ROWS, LENGTHS, PREFIX, GROUP = 32, (256, 1024), 512, 16
LIMITS = {"ragged": 2.0, "shared": 3.0}
"""At least so many times faster than SDPA: issue of csrc, section 4."""


@dataclass
class Case:
    """One batch: a ragged one, or groups of 16 that share 512 tokens and have 256 to 1024 in all."""

    name: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype = torch.bfloat16

    def __post_init__(self) -> None:
        self.shared = self.name == "shared"
        generator = torch.Generator().manual_seed(0)
        low, high = LENGTHS
        prefix = PREFIX if self.shared else 0
        totals = torch.randint(max(low, prefix + 1), high + 1, (ROWS,), generator=generator).tolist()
        self.totals, self.suffixes = totals, [total - prefix for total in totals]
        self.prefixes = [prefix] * (ROWS // GROUP) if self.shared else []
        sizes = (self.num_kv_heads, self.head_dim)
        heads = [torch.randn(n, *sizes, generator=generator).to(self.dtype) for n in (*self.prefixes, *self.suffixes)]
        values = [torch.randn(n, *sizes, generator=generator).to(self.dtype) for n in (*self.prefixes, *self.suffixes)]
        self.query = torch.randn(ROWS, self.num_heads, self.head_dim, generator=generator).to(self.dtype)
        self._gather(heads, values)
        self._page(heads, values, generator)

    def _gather(self, keys: list[Tensor], values: list[Tensor]) -> None:
        """Padded K and V [S, K, longest, D] and the mask [S, 1, 1, longest]."""
        shape = (ROWS, self.num_kv_heads, max(self.totals), self.head_dim)
        self.padded = [torch.zeros(shape, dtype=self.dtype) for _ in range(2)]
        groups = len(self.prefixes)
        for padded, parts in zip(self.padded, (keys, values), strict=True):
            for row, total in enumerate(self.totals):
                own = parts[groups + row]
                whole = torch.cat([parts[row // GROUP], own]) if groups else own
                padded[row, :, :total] = whole.transpose(0, 1)
        self.mask = (torch.arange(max(self.totals)) < torch.tensor(self.totals)[:, None])[:, None, None]

    def _page(self, keys: list[Tensor], values: list[Tensor], generator: torch.Generator) -> None:
        """The same on shuffled pages, and the plan."""
        needed = [-(-part.shape[0] // PAGE) for part in keys]
        free = torch.randperm(sum(needed), generator=generator).int()
        shape = (sum(needed), self.num_kv_heads, PAGE, self.head_dim)
        self.pages = [torch.full(shape, torch.nan, dtype=self.dtype) for _ in range(2)]
        table = torch.full((len(keys), max(needed)), -1, dtype=torch.int32)
        at = 0
        for number, count in enumerate(needed):
            table[number, :count] = free[at : at + count]
            for place in range(count):
                for pages, parts in zip(self.pages, (keys, values), strict=True):
                    part = parts[number][place * PAGE : (place + 1) * PAGE]
                    pages[table[number, place], :, : part.shape[0]] = part.transpose(0, 1)
            at += count
        groups = len(self.prefixes)
        self.tables = (table[groups:].contiguous(), table[:groups].contiguous())
        self.plan = DecodePlan.allocate(
            num_rows=ROWS,
            num_groups=groups,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            max_suffix_tokens=max(needed) * PAGE,
            max_prefix_tokens=max(needed) * PAGE,
        )
        group_of = [row // GROUP for row in range(ROWS)] if groups else [-1] * ROWS
        self.lengths = [torch.tensor(x, dtype=torch.int32) for x in (self.suffixes, group_of, self.prefixes)]
        self.output = torch.empty_like(self.query)

    def paged(self) -> Tensor:
        """The plan too, although a step makes one for all layers."""
        decode_plan(self.plan, *self.lengths)
        paged_decode(self.plan, self.query, *self.pages, *self.tables)
        attention_merge(self.plan, self.output)
        return self.output

    def sdpa(self) -> Tensor:
        query = self.query[:, :, None]
        return scaled_dot_product_attention(query, *self.padded, attn_mask=self.mask, enable_gqa=True)[:, :, 0]

    def sdpa_rows(self) -> Tensor:
        """The query heads of a KV head as the rows of one query: K and V are read once for all of them."""
        query = self.query.view(ROWS, self.num_kv_heads, -1, self.head_dim)
        return scaled_dot_product_attention(query, *self.padded, attn_mask=self.mask).view_as(self.query)

    def exact(self) -> Tensor:
        query, (key, value) = self.query.double()[:, :, None], (padded.double() for padded in self.padded)
        return scaled_dot_product_attention(query, key, value, attn_mask=self.mask, enable_gqa=True)[:, :, 0]

    @property
    def num_bytes(self) -> int:
        return 2 * 2 * self.num_kv_heads * self.head_dim * (sum(self.suffixes) + sum(self.prefixes))


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Check, then time in turn. Raises RuntimeError where paged_decode is wrong."""
    exact, runs = case.exact(), {"paged_decode": case.paged, "sdpa": case.sdpa, "sdpa_rows": case.sdpa_rows}
    errors = {name: float((run().double() - exact).abs().max()) for name, run in runs.items()}
    if not errors["paged_decode"] <= 2 * errors["sdpa"] + 1e-3:
        raise RuntimeError(f"{case.name}: paged_decode is wrong by {errors['paged_decode']}, SDPA by {errors['sdpa']}")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    medians = {name: statistics.median(found) for name, found in times.items()}
    over = {
        name: statistics.median(theirs / own for theirs, own in zip(found, times["paged_decode"], strict=True))
        for name, found in times.items()
    }
    ratio = min(over["sdpa"], over["sdpa_rows"])
    return {
        "case": f"{case.name} {case.num_heads}/{case.num_kv_heads} heads of {case.head_dim}",
        "threads": torch.get_num_threads(),
        "paged_decode_ms": round(1e3 * medians["paged_decode"], 3),
        "sdpa_ms": round(1e3 * medians["sdpa"], 3),
        "sdpa_rows_ms": round(1e3 * medians["sdpa_rows"], 3),
        "gb_per_s": round(case.num_bytes / medians["paged_decode"] / 1e9, 2),
        "speedup": round(ratio, 2),
        "limit": LIMITS[case.name],
        "met": ratio >= LIMITS[case.name],
        "max_error": errors,
    }


def seconds(run: Callable[[], Tensor]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name, heads in product(LIMITS, ((9, 3, 64), (28, 4, 128))):
            rows.append(measure(Case(name, *heads), args.rounds))
            print({key: value for key, value in rows[-1].items() if key != "max_error"}, flush=True)
    record = {
        "bench": "bench.bench_paged_decode",
        "device": "cpu",
        "isa": extension().build_info()["isa"],
        "rounds": args.rounds,
        "torch": torch.__version__,
        "rows": rows,
    }
    print(json.dumps(record))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return int(not all(row["met"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
