r"""Verdicts on answer pairs whose equality is known: ours, fast paths and verifier, are those of math-verify itself.

`data/math_pairs.jsonl` is written by `math_pairs.py`; here a part of it is asked again, with `--slow` all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from math_pairs import PATH, own_verdict, pairs

from r1fast.records import Prompt
from r1fast.rewards import REWARDS, Score
from r1fast.rewards.algebra import read_value, same_value
from r1fast.rewards.answer_lists import same_answer
from r1fast.rewards.math_verifier import load
from r1fast.scorer import written

PAIRS: list[dict[str, Any]] = [json.loads(line) for line in PATH.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def verifier() -> Callable[[str, str], float]:
    return load()


def our_verdict(pair: dict[str, Any], verifier: Callable[[str, str], float]) -> bool:
    prompt = Prompt(id="p", text="q", token_ids=(1,), answer=pair["gold"])
    score = REWARDS["accuracy"](prompt, written(prompt, f"<think> a </think> <answer> {pair['answer']} </answer>"))
    return (score.value if isinstance(score, Score) else verifier(*score.arguments)) == 1.0


def test_the_fixture_is_whole() -> None:
    built = [(pair["kind"], pair["gold"], pair["answer"], pair["equal"]) for pair in PAIRS]
    assert built == pairs()
    assert len(PAIRS) >= 500
    kinds = {pair["kind"] for pair in PAIRS}
    assert len(kinds) >= 25
    assert {pair["equal"] for pair in PAIRS if pair["kind"] == "interval"} == {True, False}


def test_math_verify_is_right_but_where_it_is_noted() -> None:
    noted = [pair for pair in PAIRS if "note" in pair]
    assert all((pair["verdict"] == pair["equal"]) == ("note" not in pair) for pair in PAIRS)
    assert len(noted) <= 4, noted


def test_our_verdicts_are_those_of_math_verify(verifier: Callable[[str, str], float]) -> None:
    differing = [pair for pair in PAIRS if our_verdict(pair, verifier) != pair["verdict"]]
    assert not differing


def test_the_verdicts_that_are_written_are_math_verifys() -> None:
    some = PAIRS[:: len(PAIRS) // 60]
    assert [own_verdict(pair["gold"], pair["answer"]) for pair in some] == [pair["verdict"] for pair in some]


@pytest.mark.slow
def test_all_the_verdicts_that_are_written_are_math_verifys() -> None:
    assert [own_verdict(pair["gold"], pair["answer"]) for pair in PAIRS] == [pair["verdict"] for pair in PAIRS]


def test_what_is_clearly_apart_is_not_simplified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("math_verify.verify", lambda *_, **__: 0.5)
    own = load()
    apart = ("y=2x", "x+1=5x=2\\cos(2x)", "1=2=3", "2\\sin(2x)+1, 3", "(3, x, 1)", "\\log_{2} 8")
    assert {answer: own("2\\sin(2x)+1", answer) for answer in apart} == dict.fromkeys(apart, 0.0)
    near = ("y=2\\sin(2x)+1", "1+2\\sin(2x)", "x<2", "7\\%")
    assert {answer: own("2\\sin(2x)+1", answer) for answer in near} == dict.fromkeys(near, 0.5)


def test_most_pairs_need_no_verifier() -> None:
    told = [same_answer(pair["gold"], pair["answer"]) for pair in PAIRS]
    for pair, same in zip(PAIRS, told, strict=True):
        assert same is None or same == pair["verdict"], pair
    assert sum(same is not None for same in told) > 250


@pytest.mark.parametrize(
    "text",
    [
        *("9^{9^{9^{9}}}", "2^{999999}", "1/0", "\\frac{1}{x-x}", "\\sqrt{-1}", "0^0", "(" * 150, "x" * 300, "2 3"),
        *("1/2x", "2\\frac{1}{2}", "f(x)", "x(y)", "0.5", "5m", "e^2", "3i", "x^y", "2^10", "--1", "1,2", "", "x y"),
        *("9" * 100, "((((9^{32})^{32})^{32})^{32})^{32}"),
    ],
)
def test_what_is_ambiguous_or_hostile_is_left_alone(text: str) -> None:
    assert read_value(text) is None


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("2\\sqrt{2}", "\\sqrt{8}", True),
        ("x^2-1", "(x-1)(x+1)", True),
        ("x^2-1", "(x-1)(x+2)", False),
        ("x", "2x/2", None),  # math-verify compares a symbol by its name
        ("\\sqrt{x^2}", "x+0", None),  # it may not prove this
        ("1+\\sqrt{2}", "\\sqrt{3+2\\sqrt{2}}", None),
        ("\\sqrt{2}", "\\frac{141421356237}{100000000000}", None),  # too near
    ],
)
def test_values_are_compared_where_they_tell(gold: str, answer: str, same: bool | None) -> None:
    assert same_value(gold, answer) is same


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("(1,2)", "(2/2, \\sqrt{4})", True),
        ("(1,2)", "(1,3)", False),
        ("(3,1)", "(5,2)", None),  # as intervals both are empty
        ("(1,2)", "[1,2]", None),
        ("\\{1,2\\}", "\\{2,1,1\\}", True),
        ("\\{1,2\\}", "\\{2\\}", False),
        ("(-\\infty,3]", "\\left(-\\infty, 3\\right]", True),
        ("x=5", "\\frac{10}{2}", True),
        ("x=5", "x=6", False),
        ("x=5", "y=5", None),
        ("y=2x+1", "y=1+x+x", True),
        ("x=x^2", "x=x^2", None),
    ],
)
def test_lists_are_compared_element_by_element(gold: str, answer: str, same: bool | None) -> None:
    assert same_answer(gold, answer) is same
