"""What a set of completions shows, against sums made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_run import math_prompt, scored

from r1fast.metrics import ratios
from r1fast.readings import Sums, chain_words, group_sums, sample_sums


def test_sums_count_values_and_given_sums() -> None:
    sums = Sums()
    sums.add("a", 2.0)
    sums.add("a", 10.0, count=4)
    sums.add_max("a", -3.0)
    sums.add_max("a", -5.0)
    assert sums == {"a_sum": 12.0, "a_count": 5.0, "a_max": -3.0}
    assert ratios(sums) == {"a": 12 / 5, "a_max": -3.0}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<think> first add 3 + 4 = 7 . </think> 答案 是 \\boxed{ 7 }", (2, 2)),  # the chain alone
        ("<think> first 加上 3 + 4 = 7 . </think> <answer> 7 </answer>", (1, 2)),
        ("first add 加上 7", (2, 3)),  # no chain: the whole response
        ("<think> first add", (2, 2)),  # not closed: the whole response
        ("<think> 3 + 4 = 7 . </think> <answer> 7 </answer>", (0, 0)),
    ],
)
def test_chain_words(text: str, words: tuple[int, int]) -> None:
    assert chain_words(scored(math_prompt(), text).rollout) == words


def test_the_template_may_have_opened_the_chain() -> None:
    prompt = math_prompt(metadata={"response_prefix": "<think>"})
    assert chain_words(scored(prompt, " first add </think> 答案 \\boxed{ 7 }").rollout) == (2, 2)


def test_sample_sums() -> None:
    good = scored(math_prompt(), "<think> wait , check first add </think> <answer> 7 </answer>")
    mixed = scored(math_prompt("r"), "<think> first 加上 </think> <answer> 6 </answer>")
    good = replace(good, rollout=replace(good.rollout, token_ids=torch.arange(9)))
    mixed = replace(mixed, rollout=replace(mixed.rollout, token_ids=torch.arange(4), finish_reason="length"))
    bare = scored(math_prompt("s"), "7 7")  # no words: says nothing of the language
    open_question = scored(replace(math_prompt("t"), answer="", kind="general"), "你好")  # not a chain of mathematics
    sums = sample_sums([good, mixed, bare, open_question])
    assert {key: value for key, value in sums.items() if value} == {
        "reward_sum": 1.0,
        "reward_count": 4.0,
        "length_sum": 13.0,
        "length_count": 4.0,
        "length_max": 9.0,
        "truncated_sum": 1.0,
        "truncated_count": 4.0,
        "reflection_sum": 2.0,
        "reflection_count": 4.0,
        "reflective_sum": 1.0,
        "reflective_count": 4.0,
        "language_share_sum": 1.5,
        "language_share_count": 2.0,
        "mixed_sum": 1.0,
        "mixed_count": 2.0,
    }


def test_group_sums_count_groups_that_teach_nothing() -> None:
    assert group_sums([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]) == {"zero_variance_sum": 2.0, "zero_variance_count": 3.0}
