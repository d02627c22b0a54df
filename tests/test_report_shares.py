"""Sharing a budget: by hand, and the two properties that a page's size rests on."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1fast.report.shares import level, spread


@pytest.mark.parametrize(
    ("sizes", "budget", "expected"),
    [
        ([], 10, 0),
        ([3, 4], 10, 4),  # all fit whole
        ([1, 9, 9], 11, 5),  # the small one stays whole, the others share what is left
        ([9, 9, 9], 10, 3),
        ([9], 0, 0),
    ],
)
def test_level(sizes: list[int], budget: int, expected: int) -> None:
    assert level(sizes, budget) == expected


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(0, 5000))
def test_a_level_fits_and_the_next_would_not(sizes: list[int], budget: int) -> None:
    found = level(sizes, budget)
    assert sum(min(size, found) for size in sizes) <= budget
    if sum(sizes) > budget:
        assert sum(min(size, found + 1) for size in sizes) > budget


@pytest.mark.parametrize(
    ("count", "wanted", "expected"),
    [
        (5, 9, [0, 1, 2, 3, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (9, 3, [0, 4, 8]),
        (9, 2, [0, 8]),
        (9, 1, [0]),
        (9, 0, []),
        (0, 3, []),
    ],
)
def test_spread(count: int, wanted: int, expected: list[int]) -> None:
    assert spread(count, wanted) == expected


@given(st.integers(1, 500), st.integers(2, 500))
def test_a_spread_is_even_and_has_both_ends(count: int, wanted: int) -> None:
    found = spread(count, wanted)
    assert len(set(found)) == len(found) == min(count, wanted)
    assert found[0] == 0 and found[-1] == count - 1
    gaps = {after - before for before, after in pairwise(found)}
    assert not gaps or max(gaps) - min(gaps) <= 1
