"""Who stands still, who is only slow, and who is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from r1fast.heartbeats import Heard, Report
from r1fast.stall import Verdict, judge


def report(rank: int = 0, **changes: Any) -> Report:
    fields = {
        "host": "a",
        "pid": 100 + rank,
        "phase": "rollout",
        "doing": "decode steps",
        "num_beats": 5,
        "still_s": 0.0,
        "limit_s": 10.0,
        "collective": "all_reduce",
        "num_collectives": 7,
        "waits": False,
    }
    return Report(rank=rank, **(fields | changes))


def verdict(own: Report, *others: Report, silent_s: float = 0.0, world_size: int = 0) -> Verdict | None:
    heard = {other.rank: Heard(other, silent_s) for other in (own, *others)}
    return judge(own, heard, world_size or len(heard), slow_s=4.0)


def text_of(found: Verdict | None) -> str:
    assert found is not None and found.kind == "stuck"
    return found.text


WAITS = report(phase="training", waits=True, num_collectives=8, still_s=10.0)


def test_one_that_works_is_stuck_after_its_limit() -> None:
    assert verdict(report(still_s=9.9)) is None
    text = text_of(verdict(report(still_s=10.0)))
    assert text == (
        "rank 0 (process 100 on a), phase rollout, made no progress for 10 s (last progress: decode steps, last "
        "collective all_reduce #7; limit faults.rollout_s = 10)"
    )


def test_without_a_limit_nothing_is_too_long() -> None:
    assert verdict(report(still_s=1e9, limit_s=0.0)) is None
    assert verdict(replace(WAITS, still_s=1e9, limit_s=0.0), replace(WAITS, rank=1, still_s=1e9)) is None


def test_one_that_waits_for_one_that_works_is_patient_and_says_so() -> None:
    works = report(1, still_s=2.0)
    assert verdict(replace(WAITS, still_s=3.9), works) is None
    for still_s in (4.0, 10.0, 1e6):
        found = verdict(replace(WAITS, still_s=still_s), works)
        assert found is not None and (found.kind, found.ranks) == ("slow", (1,))
        assert "in all_reduce #8 for rank 1 (rollout: decode steps, 2 s ago" in found.text
    assert verdict(replace(WAITS, limit_s=0.0, still_s=1e6), replace(works, limit_s=0.0, still_s=1e6)) is not None


def test_those_that_have_arrived_are_not_missing() -> None:
    there = report(1, waits=True, num_collectives=8, still_s=9.0)
    stuck = report(2, still_s=10.0)
    text = text_of(verdict(WAITS, there, stuck))
    assert "waited in all_reduce #8 for 10 s" in text
    assert "missing: rank 2 (rollout: decode steps, 10 s ago, last collective all_reduce #7; process 102 on a)" in text
    assert "rank 1" not in text


def test_a_silent_rank_is_lost_whatever_others_do() -> None:
    works = report(1, still_s=1.0)
    heard = {0: Heard(WAITS, 0.0), 1: Heard(works, 0.0), 2: Heard(report(2), 5.0)}
    found = judge(WAITS, heard, 3, slow_s=0.0)
    assert "silent for 5 s; process 102 on a" in text_of(found)
    del heard[2]
    assert "rank 2 (nothing heard of it: ended, stopped or out of reach)" in text_of(judge(WAITS, heard, 3, slow_s=0.0))
    heard[2] = Heard(report(2), 4.9)
    assert judge(WAITS, heard, 3, slow_s=0.0) is None


def test_ranks_that_wait_for_each_other_are_stuck() -> None:
    behind = report(1, waits=True, num_collectives=7, still_s=9.0, collective="broadcast")
    assert "last collective broadcast #7, waits in it" in text_of(verdict(WAITS, behind))
    assert verdict(replace(WAITS, still_s=9.9), behind) is None


def test_a_collective_in_which_all_are_hangs() -> None:
    assert "all ranks have arrived there" in text_of(verdict(WAITS, replace(WAITS, rank=1)))
    other = replace(WAITS, rank=1, collective="broadcast")
    assert text_of(verdict(WAITS, other)).endswith("; rank 1 waits in broadcast #8: they do not match")


def test_nobody_is_named_slow_unless_asked() -> None:
    assert judge(WAITS, {1: Heard(report(1), 0.0)}, 2, slow_s=0.0) is None


@pytest.mark.parametrize("phase", ["reward", "save"])
def test_the_limit_that_was_passed_is_named(phase: str) -> None:
    assert f"limit faults.{phase}_s = 10" in text_of(verdict(report(phase=phase, still_s=11.0)))
