"""Interval formulas against the standard library and by hand."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1fast.intervals import mean_interval, paired_difference


@given(st.lists(st.floats(0, 1), min_size=2, max_size=40))
def test_mean_interval_is_the_normal_one(values: list[float]) -> None:
    low, high = mean_interval(values)
    half = statistics.NormalDist().inv_cdf(0.975) * statistics.stdev(values) / math.sqrt(len(values))
    assert (low + high) / 2 == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert (high - low) / 2 == pytest.approx(half, rel=1e-6, abs=1e-9)


def test_mean_interval_of_too_little_says_nothing() -> None:
    assert mean_interval([0.4]) == (0.0, 1.0)
    assert mean_interval([]) == (0.0, 1.0)


def test_paired_difference_pairs_by_problem() -> None:
    first = {"a": 1.0, "b": 0.5, "c": 0.25, "only here": 1.0}
    second = {"c": 0.0, "a": 0.5, "b": 0.5, "only there": 0.0}
    found = paired_difference(first, second)
    low, high = mean_interval([0.5, 0.0, 0.25])
    assert found == {"mean": 0.25, "ci": [low, high], "num_problems": 3}


@pytest.mark.parametrize("first", [{}, {"a": 1.0}])
def test_paired_difference_of_too_little_may_be_anything(first: dict[str, float]) -> None:
    assert paired_difference(first, {"a": 0.0})["ci"] == [-1.0, 1.0]
