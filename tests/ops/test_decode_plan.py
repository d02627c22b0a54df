"""decode_plan: the CPU's plan and the emulated kernel's are the same, and cover every token of every row once."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from backends import EMULATED, using
from hypothesis import given, settings
from hypothesis import strategies as st

from r1fast.ops.decode_plan import DecodePlan, decode_plan

CHUNK = 512


def allocate(num_rows: int, num_groups: int, **options: int) -> DecodePlan:
    sizes = {"num_heads": 14, "num_kv_heads": 2, "head_dim": 128, "max_suffix_tokens": 2048, "max_prefix_tokens": 1536}
    return DecodePlan.allocate(num_rows=num_rows, num_groups=num_groups, **sizes | options)


def fill(plan: DecodePlan, suffixes: list[int], groups: list[int], prefixes: list[int]) -> None:
    plan.members_S.fill_(-9)
    decode_plan(plan, *(torch.tensor(numbers, dtype=torch.int32) for numbers in (suffixes, groups, prefixes)))


@st.composite
def lengths_and_groups(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    prefixes = draw(st.lists(st.integers(0, 1536), max_size=40))
    rows = draw(st.lists(st.tuples(st.integers(0, 2048), st.integers(-1, len(prefixes) - 1)), min_size=1, max_size=120))
    return [length for length, _ in rows], [group for _, group in rows], prefixes


@settings(max_examples=25)
@given(lengths_and_groups())
def test_the_plan_covers_every_token_once(batch: tuple[list[int], list[int], list[int]]) -> None:
    suffixes, groups, prefixes = batch
    plans = [allocate(len(suffixes), len(prefixes)) for _ in range(2)]
    for plan, backend in zip(plans, ("plain", EMULATED), strict=True):
        with using(backend):
            fill(plan, *batch)
    plan, emulated = plans
    for name in ("status", "items", "members_S", "partial_begin"):
        assert torch.equal(getattr(plan, name), getattr(emulated, name)), name

    begins, covered, slots = plan.partial_begin.tolist(), Counter[tuple[int, str]](), Counter[int]()
    for segment, chunk, tokens, first, members, slot, is_prefix, _ in plan.items[: int(plan.status[0])].tolist():
        assert 1 <= tokens <= CHUNK
        assert 1 <= members <= (64 // 7 if is_prefix else 1)
        for row in plan.members_S[first : first + members].tolist() if is_prefix else [segment]:
            assert not is_prefix or groups[row] == segment
            length = prefixes[segment] if is_prefix else suffixes[row]
            assert tokens == min(CHUNK, length - chunk * CHUNK)
            covered[row, "prefix" if is_prefix else "suffix"] += tokens
            before = -(-prefixes[groups[row]] // CHUNK) if groups[row] >= 0 and not is_prefix else 0
            assert slot == before + chunk
            slots[begins[row] + slot] += 1
    expected = Counter({(row, "suffix"): length for row, length in enumerate(suffixes)})
    expected += Counter({(row, "prefix"): prefixes[group] for row, group in enumerate(groups) if group >= 0})
    assert +covered == +expected
    assert slots == Counter(range(begins[-1]))


def test_full_chunks_come_before_rests() -> None:
    plan = allocate(3, 1)
    fill(plan, [600, 100, 1024], [0, 0, 0], [700])
    kinds = [(item[6], item[2]) for item in plan.items[: int(plan.status[0])].tolist()]
    assert kinds == [(1, 512), (1, 188), (0, 512), (0, 512), (0, 512), (0, 88), (0, 100)]


def test_a_batch_of_4096_sequences() -> None:
    generator = torch.Generator().manual_seed(1)
    suffixes = torch.randint(0, 2049, (4096,), generator=generator).tolist()
    groups = (torch.randperm(4096, generator=generator) // 16).tolist()
    prefixes = torch.randint(0, 1537, (256,), generator=generator).tolist()
    plans = [allocate(4096, 256) for _ in range(2)]
    for plan, backend in zip(plans, ("plain", EMULATED), strict=True):
        with using(backend):
            fill(plan, suffixes, groups, prefixes)
    for name in ("status", "items", "members_S", "partial_begin"):
        assert torch.equal(getattr(plans[0], name), getattr(plans[1], name)), name


@pytest.mark.parametrize("backend", ["plain", EMULATED])
@pytest.mark.parametrize(
    ("suffixes", "groups", "prefixes", "message"),
    [
        ([2049, 1], [-1, -1], [5], "a suffix's length is negative or more than its page table holds"),
        ([-1, 1], [-1, -1], [5], "a suffix's length is negative"),
        ([5, 1], [0, -1], [1537], "a prefix's length is negative or more"),
        ([5, 1], [1, -1], [5], "a row's group is not one of the plan's"),
        ([5, 1], [-2, -1], [5], "a row's group is not one of the plan's"),
        ([2048, 2048], [0, 0], [1536], "more partial results than max_partials"),
    ],
)
def test_faults_are_told(
    backend: str, suffixes: list[int], groups: list[int], prefixes: list[int], message: str
) -> None:
    plan = allocate(2, 1, max_partials=8)
    with using(backend), pytest.raises(ValueError, match=message):
        fill(plan, suffixes, groups, prefixes)
    if "partial" in message:  # then nothing is run
        assert plan.status[0] == 0
        assert not plan.partial_begin.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_rows": 0}, r"num_rows = 0 must be positive"),
        ({"max_suffix_tokens": 100}, r"max_suffix_tokens = 100 must be a multiple of 64"),
        ({"num_heads": 15}, r"15 query heads for 2 KV heads"),
        ({"num_heads": 34}, r"1 to 16, for each KV head"),
        ({"max_partials": 0}, r"max_partials = 0 must be positive"),
    ],
)
def test_sizes_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(**({"num_rows": 2, "num_groups": 1} | options))


def test_tensors_are_checked() -> None:
    with pytest.raises(ValueError, match=r"suffix_length_S must be int32 \[2\] on cpu, it is int32 \[3\]"):
        fill(allocate(2, 1), [1, 2, 3], [0, 0], [1])
