"""`decode_plan`, `paged_decode` and `attention_merge`: one token's attention on pages, ragged and with shared prefixes.

PyTorch's SDPA gets K and V that are already gathered and padded, which is not timed, in two ways: with enable_gqa, and
with the query heads of a KV head as the rows of one query, which is several times faster on a CPU. Bytes, the least: K
and V of the batch once, those of a shared prefix once for its group; FLOPs: 4 D for each (query head, token).
On a CPU all K and V lie in an arena, as an engine's do, and so on huge pages: SDPA's as well as ours.
`python -m bench.bench_paged_decode [--quick] [--threads 1 2] [--json FILE]`.
"""

# S sequences, H query heads, K KV heads, D head_dim

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from bench.command import main
from bench.decode_peers import FLASHINFER, VARLEN, WholePages, decode_peers
from bench.harness import Case, Figure, Measured, Outputs, Variant, Work, plain
from r1fast.ops.arena import Arena
from r1fast.ops.decode_plan import DecodePlan, decode_plan
from r1fast.ops.paged_decode import attention_merge, paged_decode

PAGE, GROUP = 64, 16
OWN, GQA, ROWS, COPY = "paged_decode", "SDPA, enable_gqa", "SDPA, heads as rows", "copy of as many bytes"
SPEEDUP = {"ragged": 2.0, "shared": 3.0}  # over the faster SDPA, on a CPU
COPY_SHARE = {256: 0.65, 1024: 0.85, 4096: 0.85}  # of a copy's bandwidth on a GPU, by tokens


@dataclass(frozen=True)
class Batch:
    """A decode step: `low` to `high` tokens a sequence, of which groups of 16 share `prefix` where it is not 0."""

    num_rows: int
    low: int
    high: int
    prefix: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def kind(self) -> str:
        return "shared" if self.prefix else "ragged"

    @property
    def suffixes(self) -> list[int]:
        generator = torch.Generator().manual_seed(0)
        low = max(self.low, self.prefix + 1)
        totals = torch.randint(low, self.high + 1, (self.num_rows,), generator=generator)
        return (totals - self.prefix).tolist()

    @property
    def prefixes(self) -> list[int]:
        return [self.prefix] * (self.num_rows // GROUP) if self.prefix else []

    @property
    def groups(self) -> list[int]:
        return [row // GROUP if self.prefix else -1 for row in range(self.num_rows)]


def in_arena(tensor: Tensor) -> Tensor:
    """A copy on huge pages where it is on a CPU; on a GPU all memory is alike."""
    if tensor.is_cuda:
        return tensor
    arena = Arena(tensor.nbytes)
    arena.commit()
    return arena.tensor(tuple(tensor.shape), tensor.dtype).copy_(tensor)


class Paged:
    """The batch's K and V on shuffled pages; what nobody wrote is NaN."""

    def __init__(self, batch: Batch, device: str) -> None:
        lengths = batch.prefixes + batch.suffixes
        needed = [-(-tokens // PAGE) for tokens in lengths]
        self.generator = torch.Generator(device).manual_seed(1)
        shape = (sum(needed), batch.num_kv_heads, PAGE, batch.head_dim)
        self.keys, self.values = (
            in_arena(torch.randn(shape, generator=self.generator, device=device).bfloat16()) for _ in range(2)
        )
        free = torch.randperm(sum(needed), generator=self.generator, device=device).int()
        self.table = torch.full((len(lengths), max(needed)), -1, dtype=torch.int32, device=device)
        at = 0
        for segment, (count, tokens) in enumerate(zip(needed, lengths, strict=True)):
            self.table[segment, :count] = free[at : at + count]
            at += count
            if tokens % PAGE:
                last = int(self.table[segment, count - 1])
                self.keys[last, :, tokens % PAGE :] = torch.nan
                self.values[last, :, tokens % PAGE :] = torch.nan
        shape = (batch.num_rows, batch.num_heads, batch.head_dim)
        self.query = torch.randn(shape, generator=self.generator, device=device).bfloat16()

    def gathered(self, segment: int, tokens: int) -> tuple[Tensor, Tensor]:
        """K and V [tokens, K, D] of a segment."""
        pages = self.table[segment, : -(-tokens // PAGE)].long()
        key, value = (x[pages].transpose(1, 2).flatten(0, 1)[:tokens] for x in (self.keys, self.values))
        return key, value


def build(batch: Batch, device: str) -> Work:
    paged, groups = Paged(batch, device), len(batch.prefixes)
    integers = partial(torch.tensor, dtype=torch.int32, device=device)
    lengths = [integers(numbers) for numbers in (batch.suffixes, batch.groups, batch.prefixes)]
    tables = (paged.table[groups:].contiguous(), paged.table[:groups].contiguous())
    plan = DecodePlan.allocate(
        num_rows=batch.num_rows,
        num_groups=groups,
        num_heads=batch.num_heads,
        num_kv_heads=batch.num_kv_heads,
        head_dim=batch.head_dim,
        max_suffix_tokens=paged.table.shape[1] * PAGE,
        max_prefix_tokens=paged.table.shape[1] * PAGE,
        device=device,
    )
    output = torch.empty_like(paged.query)

    def own() -> Outputs:
        decode_plan(plan, *lengths)  # a step makes one for all layers: here it counts in full
        paged_decode(plan, paged.query, paged.keys, paged.values, *tables)
        attention_merge(plan, output)
        return {"output": output}

    keys, values, mask = padded(batch, paged, device)

    def gqa() -> Outputs:
        query = paged.query[:, :, None]
        found = scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=True)
        return {"output": found[:, :, 0]}

    def rows(dtype: torch.dtype | None = None) -> Outputs:
        query, key, value = (x if dtype is None else x.to(dtype) for x in (paged.query, keys, values))
        query = query.view(batch.num_rows, batch.num_kv_heads, -1, batch.head_dim)
        return {"output": scaled_dot_product_attention(query, key, value, attn_mask=mask).view_as(paged.query)}

    source, target = (torch.zeros(int(num_bytes(batch)) // 2, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> Outputs:
        target.copy_(source)
        return {}

    variants = [
        Variant(OWN, "own", plain(own), "with its plan and merge"),
        Variant(GQA, "eager", plain(gqa), "K and V gathered and padded before"),
        Variant(ROWS, "eager", plain(rows), "K and V gathered and padded before"),
        *decode_peers(whole_pages(batch, paged)),
        Variant(COPY, "ceiling", plain(copy)),
    ]
    return Work(variants, partial(rows, torch.float64), {"output": 2.0**-6})


def padded(batch: Batch, paged: Paged, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """K and V [S, K, longest, D], zeros behind each sequence, and the mask [S, 1, 1, longest]."""
    totals = [batch.prefix + tokens for tokens in batch.suffixes]
    shape = (batch.num_rows, batch.num_kv_heads, max(totals), batch.head_dim)
    found = [torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in range(2)]
    for row, tokens in enumerate(batch.suffixes):
        own = paged.gathered(len(batch.prefixes) + row, tokens)
        shared = paged.gathered(batch.groups[row], batch.prefix) if batch.prefix else None
        for number, whole in enumerate(found):
            part = own[number] if shared is None else torch.cat([shared[number], own[number]])
            whole[row, :, : totals[row]] = part.transpose(0, 1)
    positions = torch.arange(max(totals), device=device)
    mask = positions < torch.tensor(totals, device=device)[:, None]
    return in_arena(found[0]), in_arena(found[1]), mask[:, None, None]


def whole_pages(batch: Batch, paged: Paged) -> WholePages | None:
    """The sequences as peers know them; None where a prefix ends within a page, which only we can share."""
    if batch.prefix % PAGE:
        return None
    groups, pages = len(batch.prefixes), []
    for row, tokens in enumerate(batch.suffixes):
        own = paged.table[groups + row, : -(-tokens // PAGE)]
        shared = paged.table[batch.groups[row], : batch.prefix // PAGE] if batch.prefix else own[:0]
        pages.append(torch.cat([shared, own]))
    lengths = [batch.prefix + tokens for tokens in batch.suffixes]
    return WholePages(paged.query, paged.keys, paged.values, pages, lengths)


def num_bytes(batch: Batch) -> float:
    """Of bf16 K and V, each segment once."""
    return 4.0 * batch.num_kv_heads * batch.head_dim * (sum(batch.suffixes) + sum(batch.prefixes))


def figures(measured: Measured, kind: str) -> list[Figure]:
    ratios = [ratio for name in (GQA, ROWS) if (ratio := measured.ratio(name, OWN)) is not None]
    return [Figure("times faster than the faster SDPA", min(ratios, default=None), SPEEDUP[kind], at_least=True)]


def gpu_figures(measured: Measured, batch: Batch) -> list[Figure]:
    least = 1.5 if batch.prefix else 1.2 if batch.high <= 512 else 1.0
    found = [
        Figure(f"times faster than {name}", measured.ratio(name, OWN), least, True) for name in (FLASHINFER, VARLEN)
    ]
    if batch.high in COPY_SHARE and not batch.prefix:
        found.append(Figure("of a copy's bandwidth", measured.ratio(COPY, OWN), COPY_SHARE[batch.high], True))
    return found


def case(batch: Batch, device: str, *, judged: bool) -> Case:
    shape = {"S": batch.num_rows, "H": batch.num_heads, "K": batch.num_kv_heads, "D": batch.head_dim}
    tokens = sum(batch.suffixes) + batch.prefix * batch.num_rows
    return Case(
        f"{batch.kind}, {batch.num_rows} x {batch.low}-{batch.high}, {batch.num_heads}/{batch.num_kv_heads} heads of "
        f"{batch.head_dim}",
        shape | {"low": batch.low, "high": batch.high, "prefix": batch.prefix},
        "bfloat16",
        4.0 * batch.head_dim * batch.num_heads * tokens,
        num_bytes(batch),
        partial(build, batch, device),
        partial(_judge, batch, device) if judged else (lambda measured: []),
        count_launches=True,
    )


def _judge(batch: Batch, device: str, measured: Measured) -> list[Figure]:
    return figures(measured, batch.kind) if device == "cpu" else gpu_figures(measured, batch)


def cases(device: str, size: str = "full") -> Iterator[Case]:
    heads = ((9, 3, 64), (28, 4, 128))
    if size == "tiny":
        yield case(Batch(16, 20, 70, 40, 4, 2, 64), device, judged=False)
    elif device == "cpu":
        for prefix in (0, 512):
            for sizes in heads:
                yield case(Batch(32, 256, 1024, prefix, *sizes), device, judged=True)
    else:
        for tokens in (256, 512, 1024, 4096) if size == "full" else (1024,):
            yield case(Batch(256, tokens, tokens, 0, *heads[1]), device, judged=True)
        yield case(Batch(256, 2048, 4096, 2048, *heads[1]), device, judged=True)


if __name__ == "__main__":
    main("bench.bench_paged_decode", cases)
