"""Schedules: the value in force, sums over steps, warm-up and cosine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1fast.schedule import at, change_steps, check_pieces, cosine, total, values, with_warmup

R1_MAX_TOKENS = ((0, 32_768), (8_200, 65_536))


def test_r1_length_limit_changes_at_step_8200() -> None:
    assert [at(R1_MAX_TOKENS, step) for step in (0, 8_199, 8_200, 10_399)] == [32_768, 32_768, 65_536, 65_536]


def test_a_number_is_its_own_schedule() -> None:
    assert at(3e-6, 0) == at(3e-6, 10**9) == 3e-6
    assert values(0.5) == (0.5,)
    assert values(R1_MAX_TOKENS) == (32_768, 65_536)


def test_change_steps_merges_schedules() -> None:
    assert change_steps(R1_MAX_TOKENS, 7, ((0, 1), (400, 2))) == (0, 400, 8_200)


def test_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="step = -1"):
        at(1.0, -1)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ((), "starts at step 0"),
        (((5, 1.0),), "this one at 5"),
        (((0, 1.0), (4, 2.0), (4, 3.0)), "rise"),
        (((0, 1.0), (9, 2.0), (4, 3.0)), "rise"),
    ],
)
def test_broken_pieces_are_refused(pieces: tuple[tuple[int, float], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_pieces(pieces)


@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(-9, 9)), max_size=5, unique_by=lambda piece: piece[0]),
    st.integers(1, 80),
)
def test_total_is_the_sum_over_steps(later: list[tuple[int, int]], num_steps: int) -> None:
    pieces = check_pieces(((0, 3), *sorted(later)))
    assert total(pieces, num_steps) == sum(at(pieces, step) for step in range(num_steps))


def test_warmup_rises_linearly_and_ends() -> None:
    assert [with_warmup(8.0, step, 4) for step in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    assert with_warmup(8.0, 0, 0) == 8.0


def test_cosine_meets_both_ends_and_the_middle() -> None:
    assert cosine(5e-5, 5e-6, 0, 101) == pytest.approx(5e-5)
    assert cosine(5e-5, 5e-6, 50, 101) == pytest.approx(2.75e-5)
    assert cosine(5e-5, 5e-6, 100, 101) == pytest.approx(5e-6)
    assert cosine(5e-5, 5e-6, 0, 1) == 5e-5
