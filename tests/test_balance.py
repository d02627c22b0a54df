"""Sharing out: nothing is lost, the budget holds, ranks have like tokens and equal numbers of micro-batches."""

from __future__ import annotations

import math
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1fast.balance import Size, balance_figures, packed_tokens, spread, spread_sequences
from r1fast.packing import partition

COSTS = st.lists(st.integers(1, 40), max_size=80)


def all_items(plan: list[list[list[int]]]) -> list[int]:
    return sorted(n for bins in plan for bin_ in bins for n in bin_)


@given(costs=COSTS, num_ranks=st.integers(1, 9), budget=st.integers(1, 64))
def test_every_item_once_within_the_budget_in_as_many_micro_batches_everywhere(
    costs: list[int], num_ranks: int, budget: int
) -> None:
    plan = spread(costs, num_ranks=num_ranks, micro_batch_tokens=budget)
    assert len(plan) == num_ranks and all_items(plan) == list(range(len(costs)))
    most = max(map(len, plan))
    for bins in plan:
        tokens = [sum(costs[n] for n in bin_) for bin_ in bins]
        assert all(bins) and tokens == sorted(tokens, reverse=True)
        assert all(count <= budget or len(bin_) == 1 for count, bin_ in zip(tokens, bins, strict=True))
        # fewer than the others only where there are no more items
        assert len(bins) == min(most, sum(map(len, bins)))
    assert plan == spread(list(costs), num_ranks=num_ranks, micro_batch_tokens=budget)


@given(costs=st.lists(st.integers(1, 40), min_size=1, max_size=80), num_ranks=st.integers(1, 9))
def test_no_rank_has_more_than_the_longest_item_above_the_least(costs: list[int], num_ranks: int) -> None:
    """Graham's bound of the greedy rule, where every rank has room."""
    plan = spread(costs, num_ranks=num_ranks, micro_batch_tokens=10_000)
    loads = [sum(costs[n] for bin_ in bins for n in bin_) for bins in plan]
    assert max(loads) - min(loads) <= max(costs)


@given(costs=st.lists(st.integers(1, 40), min_size=1, max_size=60), budget=st.integers(40, 100))
def test_one_rank_has_at_most_as_many_micro_batches_as_packing_alone_makes(costs: list[int], budget: int) -> None:
    (bins,) = spread(costs, num_ranks=1, micro_batch_tokens=budget)
    assert len(bins) <= len(partition(costs, micro_batch_tokens=budget))


def test_the_budget_sets_the_number_and_then_all_are_filled_alike() -> None:
    plan = spread([10] * 12, num_ranks=2, micro_batch_tokens=50)  # 5 and 1 each, were they filled one after another
    assert [[len(bin_) for bin_ in bins] for bins in plan] == [[3, 3], [3, 3]]


def test_an_item_goes_to_another_rank_where_the_least_loaded_has_no_room() -> None:
    """By tokens alone, ranks would have [60, 40] and [60, 40], and the last two of 30 would open a third."""
    costs = [60, 60, 40, 40]
    plan = spread(costs, num_ranks=2, micro_batch_tokens=100)
    assert [[sum(costs[n] for n in bin_) for bin_ in bins] for bins in plan] == [[100], [100]]


def test_micro_batches_that_must_all_be_full_are_filled_by_choice() -> None:
    """Best-fit puts 50 with 40 and then has nothing for the others: 60 + 40, 50 + 30 + 20 and 45 + 35 + 20 is all."""
    costs = [60, 50, 45, 40, 35, 30, 20, 20]
    plan = spread(costs, num_ranks=3, micro_batch_tokens=100)
    assert [[sum(costs[n] for n in bin_) for bin_ in bins] for bins in plan] == [[100], [100], [100]]


def test_ranks_without_items_and_a_bad_budget() -> None:
    assert spread([], num_ranks=2, micro_batch_tokens=8) == [[], []]
    assert spread([5], num_ranks=3, micro_batch_tokens=8) == [[[0]], [], []]
    assert spread([5, 50], num_ranks=2, micro_batch_tokens=8) == [[[1]], [[0]]]
    with pytest.raises(ValueError, match="micro_batch_tokens = 0"):
        spread([1], num_ranks=1, micro_batch_tokens=0)


SIZES = st.lists(
    st.tuples(st.integers(1, 30), st.lists(st.integers(0, 30), min_size=1, max_size=9)), min_size=1, max_size=6
).map(
    lambda groups: [
        Size(number, num_prompt, length) for number, (num_prompt, lengths) in enumerate(groups) for length in lengths
    ]
)


@given(sizes=SIZES, num_ranks=st.integers(1, 4), budget=st.integers(10, 400), share=st.booleans())
def test_sequences_are_complete_and_prompts_count_once(
    sizes: list[Size], num_ranks: int, budget: int, share: bool
) -> None:
    plan = spread_sequences(sizes, num_ranks=num_ranks, micro_batch_tokens=budget, share_prompts=share)
    assert all_items(plan) == list(range(len(sizes)))
    tokens = packed_tokens(plan, sizes, share_prompts=share)
    for counts, bins in zip(tokens, plan, strict=True):
        for count, bin_ in zip(counts, bins, strict=True):
            prompts = {(sizes[n].group if share else n, sizes[n].num_prompt) for n in bin_}
            assert count == sum(sizes[n].num_completion for n in bin_) + sum(length for _, length in prompts)
            assert count <= budget or len(bin_) == 1


def test_groups_stay_together_where_that_is_faster_and_only_there() -> None:
    """Two groups on two ranks stay whole; one group alone is divided, its prompt is computed twice."""
    two = [Size(group, 100, 10) for group in range(2) for _ in range(8)]
    plan = spread_sequences(two, num_ranks=2, micro_batch_tokens=1000, share_prompts=True)
    assert [{two[n].group for n in chain(*bins)} for bins in plan] in ([{0}, {1}], [{1}, {0}])
    one = [Size(0, 20, 100) for _ in range(8)]
    plan = spread_sequences(one, num_ranks=2, micro_batch_tokens=1000, share_prompts=True)
    assert [sum(map(sum, packed_tokens([bins], one, share_prompts=True))) for bins in plan] == [420, 420]
    long_prompt = [Size(0, 900, 1) for _ in range(4)]  # a second rank could only repeat the prompt: no gain, no harm
    plan = spread_sequences(long_prompt, num_ranks=2, micro_batch_tokens=1000, share_prompts=True)
    assert max(map(sum, packed_tokens(plan, long_prompt, share_prompts=True))) <= 904


def test_figures() -> None:
    assert balance_figures([[10, 6], [8, 4]], 10) == pytest.approx({"utilisation": 28 / 40, "imbalance": 16 / 14 - 1})
    assert balance_figures([[30], []], 10) == pytest.approx({"utilisation": 30 / 40, "imbalance": 1.0})
    assert balance_figures([[], []], 10) == {}


def test_a_thousand_lengths_like_those_of_r1() -> None:
    """The bench has more of them: `python -m bench.balance`."""
    costs = [int(32768 * math.exp(-3.5 * (n * 0.6180339887 % 1))) for n in range(1024)]
    plan = spread(costs, num_ranks=8, micro_batch_tokens=32768)
    figures = balance_figures([[sum(costs[n] for n in bin_) for bin_ in bins] for bins in plan], 32768)
    assert figures["utilisation"] >= 0.97 and figures["imbalance"] <= 0.03
