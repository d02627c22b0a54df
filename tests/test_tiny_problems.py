"""Problems: right answers, disjoint splits, and the same ones for ever."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from r1fast.tiny.lexicon import MAX_NUMBER, rewrite, vocabulary
from r1fast.tiny.problems import Problem, draw_problem, problems, split_of

DRAWN = [draw_problem(random.Random(f"test {number}")) for number in range(400)]


def solve(question: str) -> int:
    """The answer, read from the words of the question alone."""
    value = 0
    for part in rewrite(question, "en").split(" . "):
        number = int((re.findall(r"\d+", part) or ["0"])[0])
        verb = part.split()[0]
        if " has " in part:
            value = number
        elif verb in ("gains", "finds", "buys"):
            value += number
        elif verb in ("loses", "sells", "eats"):
            value -= number
        elif verb in ("doubles", "triples"):
            value *= {"doubles": 2, "triples": 3}[verb]
        else:
            assert part.endswith("?"), part
    return value


def test_answers_are_right() -> None:
    for problem in DRAWN:
        assert solve(problem.question) == problem.answer


def test_problems_are_within_bounds() -> None:
    assert {len(problem.operations) for problem in DRAWN} == {2, 3, 4, 5}
    assert {problem.language for problem in DRAWN} == {"en", "zh"}
    for problem in DRAWN:
        values = [problem.start, *(step.result for step in problem.steps)]
        assert all(0 <= value <= MAX_NUMBER for value in values)
        assert [step.left for step in problem.steps] == values[:-1]
    known = set(vocabulary())
    assert all(set(problem.question.split()) <= known for problem in DRAWN)


def test_wording_and_language_do_not_change_the_key() -> None:
    fields = {"start": 3, "operations": (("+", 4), ("*", 2)), "thing": "apples"}
    english = Problem(**fields, language="en", name="tom", wording=("gains", "doubles"))  # type: ignore[arg-type]
    chinese = Problem(**fields, language="zh", name="amy", wording=("buys", "doubles"))  # type: ignore[arg-type]
    assert english.key == chinese.key == "3+4*2"
    assert english.question == "tom has 3 apples . gains 4 . doubles . how many apples ?"
    assert chinese.question == "艾米 有 3 苹果 。 买了 4 。 翻倍 。 多少 苹果 ？"
    assert english.answer == chinese.answer == 14


def test_splits_are_disjoint_by_key_and_distinct_within() -> None:
    drawn = {
        split: [p.key for p in itertools.islice(problems(split, random.Random(split)), 300)]
        for split in ("train", "dev", "held_out")
    }
    for split, keys in drawn.items():
        assert len(set(keys)) == 300
        assert {split_of(key) for key in keys} == {split}
    assert not set(drawn["train"]) & set(drawn["held_out"])


def test_split_shares() -> None:
    splits = [split_of(f"{number}") for number in range(5000)]
    shares = [splits.count(split) / 5000 for split in ("train", "dev", "held_out")]
    assert shares == pytest.approx([0.80, 0.08, 0.12], abs=0.02)


def test_splits_and_problems_are_those_of_every_other_run() -> None:
    assert [split_of(key) for key in ("3+4*2", "10-1", "hello", "14+1", "14+2")] == PINNED_SPLITS
    rng = random.Random("pinned")
    assert [problem.question for problem in itertools.islice(problems("held_out", rng), 2)] == PINNED_QUESTIONS


PINNED_SPLITS = ["train", "train", "train", "held_out", "held_out"]
PINNED_QUESTIONS = [
    "艾米 有 11 杯子 。 翻倍 。 得到 3 。 翻倍 。 多少 杯子 ？",
    "amy has 20 cups . doubles . finds 7 . how many cups ?",
]
