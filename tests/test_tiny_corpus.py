"""The corpus of the base models: training problems only, in vocabulary, in the shares that the mix states."""

from __future__ import annotations

import random

import pytest

from r1fast.tiny import corpus
from r1fast.tiny.corpus import CorpusMix, chain, documents, switch_words, wrong_result
from r1fast.tiny.lexicon import rewrite, vocabulary
from r1fast.tiny.problems import Problem, draw_problem, split_of
from r1fast.tiny.templates import R1_ZERO, render
from r1fast.tiny.tokenizer import MAX_TOKENS, build_tokenizer

MIX = CorpusMix()
RNG = random.Random("corpus")
TEXTS = [text for _ in range(4) for text in documents(MIX, RNG)]
HEADER = render(R1_ZERO, "").split("<user>")[0]


def split(text: str) -> tuple[str, str, bool]:
    """(question, answer, templated) of a document with a user."""
    head, _, answer = text.partition("<assistant>")
    return head.partition("<user>")[2].strip(), answer.strip(), text.startswith(HEADER)


def test_every_document_is_in_vocabulary_and_fits() -> None:
    tokenizer = build_tokenizer()
    encoded = tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in ids for ids in encoded)
    assert max(map(len, encoded)) + 2 <= MAX_TOKENS
    assert {token for text in TEXTS for token in text.split()} <= set(vocabulary())


def test_only_training_problems_and_requests_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    solve = corpus.worked_solution

    def spy(problem: Problem, mix: CorpusMix, rng: random.Random) -> tuple[str, int]:
        seen.append(problem.key)
        return solve(problem, mix, rng)

    monkeypatch.setattr(corpus, "worked_solution", spy)
    texts = documents(MIX, random.Random("spied"))
    assert len(seen) > 850 and {split_of(key) for key in seen} == {"train"}
    general = [split(text)[0] for text in texts if "<user>" in text and " has " not in rewrite(text, "en")]
    assert general and {split_of(question) for question in general} == {"train"}


def test_shares_are_near_those_of_the_mix() -> None:
    templated = [text for text in TEXTS if text.startswith(HEADER)]
    chats = [text for text in TEXTS if text.startswith("<user>")]
    assert len(templated) / len(TEXTS) == pytest.approx(MIX.templated, abs=0.03)
    assert len(chats) / len(TEXTS) == pytest.approx(MIX.chat, abs=0.03)
    solved = [answer for question, answer, _ in map(split, templated) if " has " in rewrite(question, "en")]
    assert 1 - len(solved) / len(templated) == pytest.approx(MIX.general, abs=0.02)
    proper = [a for a in solved if a.startswith("<think>") and "</think> <answer>" in a and a.endswith("</answer>")]
    assert len(proper) / len(solved) == pytest.approx(MIX.proper_tags, abs=0.03)
    assert not any("\\boxed{" in answer for answer in solved)  # boxed answers occur in conversations only
    assert any("\\boxed{" in text for text in chats)


def test_documents_are_deterministic() -> None:
    assert documents(MIX, random.Random(3)) == documents(MIX, random.Random(3))
    assert documents(MIX, random.Random(3)) != documents(MIX, random.Random(4))


def test_a_chain_without_errors_is_right() -> None:
    for number in range(100):
        problem = draw_problem(random.Random(number))
        steps, value = chain(problem, random.Random(number), step_error=0.0, check=0.0)
        assert value == problem.answer and len(steps) == len(problem.operations)
        written = " ".join(steps)
        assert written.endswith(f"= {problem.answer} .")
        for step in problem.steps:
            assert f"{step.left} {step.operator} {step.right} = {step.result} ." in written


def test_every_error_is_mended_by_a_check() -> None:
    """A check of every step finds every slip."""
    for number in range(50):
        problem = draw_problem(random.Random(number))
        steps, value = chain(problem, random.Random(number), step_error=1.0, check=float(len(problem.operations)))
        assert value == problem.answer
        assert sum("mistake" in step for step in steps) == len(problem.operations)


def test_wrong_results_are_near_and_legal() -> None:
    for result in (0, 1, 50, 98, 99):
        drawn = {wrong_result(result, random.Random(n)) for n in range(100)}
        assert result not in drawn and all(0 <= value <= 99 and abs(value - result) <= 10 for value in drawn)


def test_switching_keeps_meaning_and_punctuation() -> None:
    text = "first add 3 + 4 = 7 . then double ."
    switched = switch_words(text, 1.0, random.Random(0))
    assert switched == "首先 加上 3 + 4 = 7 . 然后 加倍 ."
    assert switch_words(text, 0.0, random.Random(0)) == text
    assert switch_words(switched, 1.0, random.Random(0)) == text
