"""The embedded source: disjoint splits, fixed draws, judged pairs with the noise that is stated."""

from __future__ import annotations

import pytest

from r1fast.records import Prompt
from r1fast.rewards.response import parse_response
from r1fast.tiny.general import Request, grade, is_refusal
from r1fast.tiny.problems import split_of
from r1fast.tiny.source import GOOD_SHARE, JUDGE_NOISE, TinySource, _requests

SPLITS = ("train", "dev", "held_out")


def source(seed: int = 0) -> TinySource:
    return TinySource(num_train=300, num_dev=40, num_held_out=60, seed=seed)


def test_prompts_are_as_many_distinct_and_disjoint() -> None:
    found = {split: source().prompts(split) for split in SPLITS}
    assert [len(found[split]) for split in SPLITS] == [300, 40, 60]
    ids = [prompt.id for prompts in found.values() for prompt in prompts]
    assert len(set(ids)) == len(ids)
    for split, prompts in found.items():
        assert {split_of(prompt.id.removeprefix("math-")) for prompt in prompts} == {split}
        assert {prompt.kind for prompt in prompts} == {"math"}
        assert all(0 <= int(prompt.answer) <= 99 for prompt in prompts)
    languages = [prompt.language for prompt in found["train"]]
    assert languages.count("zh") / 300 == pytest.approx(0.5, abs=0.1)


def test_everything_is_deterministic_and_the_seed_matters() -> None:
    for read in (
        lambda s: s.prompts("train"),
        lambda s: s.general_prompts("train"),
        lambda s: s.general_examples(20, 1),
        lambda s: s.preference_pairs("train", 20, 1),
        lambda s: s.safety_examples("train", 20, 1),
    ):
        assert read(source()) == read(source())
        assert read(source(0)) != read(source(1))
    assert source().general_examples(20, 1) != source().general_examples(20, 2)


def test_general_prompts() -> None:
    found = {split: source().general_prompts(split) for split in SPLITS}
    ids = [prompt.id for prompts in found.values() for prompt in prompts]
    assert len(set(ids)) == len(ids)
    for split, prompts in found.items():
        assert {split_of(prompt.text) for prompt in prompts} == {split}
        assert {prompt.kind for prompt in prompts} == {"general", "harmful"}
        assert not any(prompt.answer for prompt in prompts)
        share = sum(prompt.kind == "harmful" for prompt in prompts) / len(prompts)
        assert share == pytest.approx(0.4, abs=0.15)


def request_of(prompt: Prompt) -> Request:
    return next(r for split in SPLITS for r in _requests(split, 0) if r.text == prompt.text)


def test_pairs_prefer_the_better_answer_but_for_the_noise() -> None:
    pairs = source().preference_pairs("held_out", 1000, 3)
    assert len(pairs) == 1000
    requests = {pair.prompt.text: request_of(pair.prompt) for pair in pairs}
    gaps = [
        grade(requests[pair.prompt.text], pair.chosen) - grade(requests[pair.prompt.text], pair.rejected)
        for pair in pairs
    ]
    assert all(abs(gap) >= 1 for gap in gaps) and 1 in gaps  # near-misses
    assert sum(gap < 0 for gap in gaps) / 1000 == pytest.approx(JUDGE_NOISE, abs=0.02)


def test_safety_labels_but_for_the_noise() -> None:
    examples = source().safety_examples("train", 1000, 3)
    wrong = 0
    for example in examples:
        summary = parse_response(example.response).summary
        wrong += example.safe != (example.prompt.kind != "harmful" or is_refusal(summary))
    assert wrong / 1000 == pytest.approx(JUDGE_NOISE, abs=0.02)
    assert 0.05 < sum(not example.safe for example in examples) / 1000 < 0.5


def test_general_examples_are_good_to_the_stated_share() -> None:
    examples = source().general_examples(600, 5)
    good = sum(
        grade(request_of(example.prompt), parse_response(example.response).summary.strip()) == 3 for example in examples
    )
    assert good / 600 == pytest.approx(GOOD_SHARE, abs=0.06)
    assert {split_of(example.prompt.text) for example in examples} == {"train"}


def test_readable_and_rewrite() -> None:
    prompt = Prompt(id="p", text="", token_ids=(), language="zh", answer="7")
    chain = source().rewrite("first 加上 3 + 4 = 7 .", "zh")
    assert chain == "首先 加上 3 + 4 = 7 。"
    assert source().readable(chain, prompt) == f"<think> {chain} </think> 这个 答案 是 \\boxed{{ 7 }}"
    assert source().is_refusal("抱歉 , 我 不能 帮助 用 那个 。")
