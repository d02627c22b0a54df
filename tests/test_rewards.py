"""Rule rewards: values, outcomes, speed; and what must never happen to them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1fast.records import Prompt
from r1fast.rewards import REWARDS, Check, Score
from r1fast.rewards.language import language_share
from r1fast.rewards.numbers import exact_number, last_number, only_number
from r1fast.rewards.reflection import reflective_words
from r1fast.rewards.response import last_boxed, parse_response
from r1fast.scorer import written

ZERO = "<think> first 17 + 5 = 22 . then 22 - 8 = 14 . </think> <answer> 14 </answer>"
READABLE = "<think> first 17 + 5 = 22 . then 22 - 8 = 14 . </think> the answer is \\boxed{ 14 } ."


def prompt(answer: str = "14", **fields: object) -> Prompt:
    return Prompt(id="p", text="question", token_ids=(1,), answer=answer, **fields)  # type: ignore[arg-type]


def score(name: str, text: str, answer: str = "14", **fields: object) -> Score:
    question = prompt(answer, **fields)
    result = REWARDS[name](question, written(question, text))
    assert isinstance(result, Score), result
    return result


@pytest.mark.parametrize(
    ("text", "value", "outcome"),
    [
        (ZERO, 1.0, "ok"),
        (READABLE, 1.0, "ok"),
        ("<answer>14</answer>", 1.0, "ok"),
        ("<think>\n a\n</think>\n\n<answer>\n14.0\n</answer>\n", 1.0, "ok"),
        ("<think> a </think> <answer> the answer is 14 . </answer>", 1.0, "ok"),
        ("<think> a </think> <answer> 22 - 8 = 14 </answer>", 1.0, "ok"),
        ("<think> a </think> <answer> $14$ </answer>", 1.0, "ok"),
        ("<think> a </think> <answer> \\boxed{14} </answer>", 1.0, "ok"),
        ("<think> a </think> <answer> 15 </answer>", 0.0, "wrong"),
        ("<think> a </think> <answer> -14 </answer>", 0.0, "wrong"),
        ("<think> a </think> <answer> 13 14 </answer>", 0.0, "unparsed"),  # listing candidates must not pay
        ("<think> a </think> <answer> 14 or 15 </answer>", 0.0, "unparsed"),
        ("<think> a </think> <answer> </answer>", 0.0, "unparsed"),
        ("<think> a </think> 14", 0.0, "unparsed"),
        ("<think> the answer is \\boxed{14}", 0.0, "unparsed"),  # a chain that never ends has no summary
        ("<think> \\boxed{14} </think> so", 0.0, "unparsed"),
        ("<think> a </think> <answer> \\boxed{ 14 </answer>", 0.0, "unparsed"),
        ("", 0.0, "unparsed"),
    ],
)
def test_accuracy_is_strict(text: str, value: float, outcome: str) -> None:
    assert score("accuracy", text) == Score(value, outcome)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value", "outcome"),
    [
        ("<think> a </think> <answer> 14 </answer>", 1.0, "ok"),
        ("<think> a </think> <answer> 15 </answer>", 0.0, "wrong"),
        ("<answer>14</answer>", 0.0, "unparsed"),  # right, but without a chain
        ("<think> a </thought> <answer> 14 </answer>", 0.0, "unparsed"),
    ],
)
def test_accuracy_in_format_pays_only_for_both(text: str, value: float, outcome: str) -> None:
    assert score("accuracy_in_format", text) == Score(value, outcome)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (ZERO, 1.0),
        ("first 17 + 5 = 22 . so 14", 1.0),
        ("14 . then 15", 0.0),
        ("\\boxed{14} and then 15", 1.0),
        ("<think> 14", 1.0),
        ("<answer> 13 14 </answer>", 1.0),
        ("nothing", 0.0),
        ("x" * 1000 + " 14", 1.0),
    ],
)
def test_accuracy_any_ignores_the_format(text: str, value: float) -> None:
    assert score("accuracy_any", text).value == value


@given(st.text(alphabet="<>/thinkaswer 0123456789.=-\\boxed{}$,", max_size=80), st.integers(-20, 20))
def test_lenient_accuracy_is_never_below_strict(text: str, answer: int) -> None:
    question = prompt(str(answer))
    strict = REWARDS["accuracy"](question, written(question, text))
    lenient = REWARDS["accuracy_any"](question, written(question, text))
    if isinstance(strict, Score) and strict.value == 1.0:
        assert isinstance(lenient, Score) and lenient.value == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (ZERO, 1.0),
        (READABLE, 1.0),
        (" \n" + ZERO + "\n", 1.0),
        ("<think> </think> <answer> 14 </answer>", 0.0),
        ("<think> a </think> so <answer> 14 </answer>", 0.0),
        ("<think> a </think> <answer> 14 </answer> done", 0.0),
        ("well <think> a </think> <answer> 14 </answer>", 0.0),
        ("<think> a </think> <answer> 14 </answer> <answer> 14 </answer>", 0.0),
        ("<think> a <think> b </think> <answer> 14 </answer>", 0.0),
        ("<answer> 14 </answer> <think> a </think>", 0.0),
        ("</think> a <think> <answer> 14 </answer>", 0.0),
        ("<think> a </think> \\boxed{14} and more", 0.0),
        ("<think> a </think> the answer is 14", 0.0),
        ("<think> a </think> $$\\boxed{14}$$.", 1.0),
        ("<think> a <answer> 14 </answer> </think> <answer> 14 </answer>", 0.0),
    ],
)
def test_format_wants_one_whole_structure(text: str, value: float) -> None:
    assert score("format", text).value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hello , friend .", 1.0),
        ("<think> greet back . </think> hello !", 1.0),
        ("<think> greet back .", 0.0),
        ("<think> greet </think>", 0.0),
        ("a <think> b </think> c", 0.0),
        (" ", 0.0),
    ],
)
def test_format_of_an_open_question_needs_no_answer(text: str, value: float) -> None:
    assert score("format", text, answer="", kind="general").value == value


def test_a_chain_opened_by_the_template_counts() -> None:
    opened = {"response_prefix": "<think>"}
    text = ZERO.removeprefix("<think>")
    assert score("format", text).value == 0.0
    assert score("format", text, metadata=opened).value == 1.0
    assert score("language", text, metadata=opened).value == 1.0


def test_a_chain_that_the_template_opened_is_skipped_by_closing_it() -> None:
    """In an answer to an open question; elsewhere, or where the model opened it itself, it is an empty chain."""
    skipped, opened = "\n\n</think>\n\nfirst we add .", {"response_prefix": "<think>"}
    greeting: dict[str, Any] = {"answer": "", "kind": "general"}
    for name in ("format", "language"):
        assert score(name, skipped, metadata=opened, **greeting).value == 1.0
        assert score(name, f"<think>{skipped}", **greeting).value == 0.0
        assert score(name, skipped, metadata=opened).value == 0.0
    assert score("format", "\n</think>\n", metadata=opened, **greeting).value == 0.0  # nothing is said
    assert score("language", "\n</think>\n首先 we add .", metadata=opened, **greeting).value < 1.0


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("first 17 + 5 = 22 . then", "en", (2, 2)),
        ("首先 17 + 5 然后 then", "zh", (2, 3)),
        ("首先 17 + 5 然后 then", "en", (1, 3)),
        ("我们先计算三加五", "zh", (5, 5)),  # segmented
        ("17 + 5 = 22", "en", (0, 0)),
        ("设 x = 5", "zh", (1, 1)),  # a variable is no English word
        ("求 $\\frac{apple}{y}$ 和 `code here`", "zh", (2, 2)),
        ("don't stop", "en", (2, 2)),
        ("<think> first", "en", (1, 1)),
        ("first привет", "en", (1, 2)),
    ],
)
def test_language_share(text: str, language: str, share: tuple[int, int]) -> None:
    assert language_share(text, language) == share


def test_language_reward() -> None:
    mixed = "<think> 首先 17 + 5 = 22 。 then 14 。 </think> <answer> 14 </answer>"
    assert score("language", mixed, language="zh") == Score(0.5, "partial")
    assert score("language", ZERO) == Score(1.0, "ok")
    assert score("language", "<think> 17 + 5 </think> 14") == Score(0.0, "empty")
    assert score("language", "first then 14") == Score(0.0, "unparsed")
    assert score("language_any", "first then 14") == Score(1.0, "ok")
    assert score("language", "hello friend", answer="", kind="general") == Score(1.0, "ok")
    with pytest.raises(ValueError, match="'ko'"):
        score("language", ZERO, language="ko")


def test_reflective_words() -> None:
    assert reflective_words("wait , that is wrong . check : 3 + 4 = 7 . Rechecked.") == 4
    assert reflective_words("等等 , 检查 3 + 4 = 7 。 错误") == 3
    assert reflective_words("await the checkout") == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("14", 14),
        (" - 3 ", -3),
        ("−3", -3),
        ("1,234,567", 1234567),
        ("2.50", 2.5),
        (".5", 0.5),
        ("-3/4", -0.75),
        ("\\frac{3}{4}", 0.75),
        ("14.0", 14),
        ("1e3", 1000),
        ("3/0", None),
        ("1,23", None),
        ("14 15", None),
        ("", None),
        ("-", None),
        ("9" * 5000, None),
        ("1e999999999", None),
    ],
)
def test_exact_number(text: str, value: float | None) -> None:
    assert exact_number(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 - 5 = -3", -3),
        ("= - 3", -3),
        ("10 - 3", 3),
        ("10 -3", 3),
        ("it is -3.", -3),
        ("x-3", 3),
        ("(-3)", -3),
        ("", None),
    ],
)
def test_last_number_knows_a_sign_from_an_operator(text: str, value: int | None) -> None:
    assert last_number(text) == value
    assert last_number("7 . " * 50 + text) == (7 if value is None else value)


def test_only_number_is_not_ambiguous() -> None:
    assert only_number("17 + 5 = 22") == 22
    assert only_number("22 = 17 + 5") is None
    assert only_number("14 apples") == 14


def test_last_boxed() -> None:
    assert last_boxed("\\boxed{1} \\boxed {\\frac{1}{2}} .")[0] == "\\frac{1}{2}"
    assert last_boxed("\\boxed{1") == (None, -1)
    assert last_boxed("\\boxed 1") == (None, -1)
    assert last_boxed("\\boxed" + "{" * 10_000) == (None, -1)


def test_what_needs_algebra_is_left_to_a_verifier() -> None:
    question = prompt("\\frac{\\sqrt{3}}{2}")
    text = "<think> a </think> <answer> \\sin(\\pi/3) </answer>"
    asked = Check("math", (question.answer, "\\sin(\\pi/3)"))
    assert REWARDS["accuracy"](question, written(question, text)) == asked
    same = "<think> a </think> \\boxed{\\frac{\\sqrt{3}}{2}}"
    assert REWARDS["accuracy"](question, written(question, same)) == Score(1.0, "ok")
    third = prompt("1/3")
    near = REWARDS["accuracy"](third, written(third, "<answer> 0.333333 </answer>"))
    assert isinstance(near, Check)  # rounding decides
    assert score("accuracy", "<answer> 0.34 </answer>", answer="1/3").outcome == "wrong"


def test_gym_asks_the_data_set_unless_the_number_is_right() -> None:
    metadata = {"gym_dataset": "chain_sum", "gym_config": "{}", "gym_entry": json.dumps({"answer": "14"})}
    question = prompt(kind="gym", metadata=metadata)
    assert REWARDS["accuracy"](question, written(question, ZERO)) == Score(1.0, "ok")
    wrong = REWARDS["accuracy"](question, written(question, "<answer> 15 </answer>"))
    assert wrong == Check("gym", ("chain_sum", "{}", metadata["gym_entry"], "15"), exact=True)
    partial = REWARDS["gym"](question, written(question, "<answer> it is 14 </answer>"))
    assert isinstance(partial, Check) and not partial.exact
    with pytest.raises(ValueError, match="source 'gym'"):
        REWARDS["gym"](prompt(), written(prompt(), ZERO))


@given(st.text(max_size=200))
def test_parsing_never_raises(text: str) -> None:
    parse_response(text)
    question = prompt()
    for name in ("accuracy", "accuracy_any", "format", "language", "language_any"):
        REWARDS[name](question, written(question, text))


def test_hostile_lengths_are_answered_at_once() -> None:
    for text in ("<answer>" + "9" * 1_000_000 + "</answer>", "\\boxed{" * 20_000, "<think>" * 50_000, "1," * 500_000):
        start = time.perf_counter()
        for name in ("accuracy", "accuracy_any", "format", "language", "language_any"):
            REWARDS[name](prompt(), written(prompt(), text))
        assert time.perf_counter() - start < 5.0


def test_a_reward_costs_microseconds() -> None:
    question = prompt()
    rollouts = [written(question, text) for text in (ZERO, READABLE)]
    for name in ("accuracy", "accuracy_any", "format", "language"):
        best = min(_seconds(name, question, rollouts) for _ in range(5))
        assert best / 400 < 100e-6, name  # 3-5 us on a quiet machine


def _seconds(name: str, question: Prompt, rollouts: list) -> float:  # type: ignore[type-arg]
    start = time.perf_counter()
    for _ in range(200):
        for rollout in rollouts:
            REWARDS[name](question, rollout)
    return time.perf_counter() - start
