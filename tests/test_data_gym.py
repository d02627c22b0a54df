"""Prompts from reasoning-gym: distinct, disjoint, deterministic, scored by their own scorers."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import pytest

from r1fast.config import DataConfig
from r1fast.data.splits import load_prompts, load_splits
from r1fast.scorer import Scorer, written

SUMS = {"chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}


def test_gym_splits_are_distinct_disjoint_and_scored_by_their_own_scorer() -> None:
    config = DataConfig(source="gym", gym_tasks=SUMS, num_train=300, num_dev=50, num_held_out=100)
    splits = load_splits(config).prompts
    assert {name: len(prompts) for name, prompts in splits.items()} == {"train": 300, "dev": 50, "held_out": 100}
    everything = [prompt for prompts in splits.values() for prompt in prompts]
    assert len({prompt.text for prompt in everything}) == len({prompt.id for prompt in everything}) == 450
    assert load_splits(config).prompts == splits
    other = load_prompts(
        DataConfig(source="gym", gym_tasks=SUMS, num_train=300, num_dev=50, num_held_out=100, seed=1), "train"
    )
    assert [prompt.text for prompt in other] != [prompt.text for prompt in splits["train"]]
    scorer = Scorer({"gym": {"accuracy": 1.0, "gym": 1.0}})
    scorer.check_gold(splits["train"][:20])
    prompt = splits["train"][0]
    wrong = f"<think> a </think> <answer> {int(prompt.answer) + 1000} </answer>"
    assert scorer.score([written(prompt, wrong)])[0].parts["accuracy"] == 0.0
    scorer.close()


def test_gym_asks_in_other_languages_in_turn() -> None:
    spanish = {"State the final answer to the following arithmetic problem:": "Di el resultado de este problema:"}
    tasks = {"chain_sum": {**SUMS["chain_sum"], "languages": {"es": spanish}}}
    config = DataConfig(source="gym", gym_tasks=tasks, num_train=40, num_dev=10, num_held_out=10)
    prompts = load_prompts(config, "train")
    english = load_prompts(replace(config, gym_tasks=SUMS), "train")
    assert [prompt.language for prompt in prompts] == ["en", "es"] * 20
    for prompt, other in zip(prompts, english, strict=True):
        assert (prompt.id, prompt.answer) == (other.id, other.answer)
        assert prompt.text == (
            other.text if prompt.language == "en" else other.text.replace(*next(iter(spanish.items())))
        )
    with closing(Scorer({"gym": {"accuracy": 1.0}})) as scorer:
        assert scorer.check_gold(list(prompts), max_bad_share=0.0) == 0
    refused: tuple[tuple[object, str], ...] = (
        (["es"], r"languages = \['es'\] must be a table"),
        (3, r"languages = 3 must be a table"),
        ({"es": {}}, r"languages\.es = \{\} must be a table of phrases"),
        ({"es": {"Compute": "Calcula"}}, r"has none of the phrases \['Compute'\]"),
    )
    for languages, message in refused:
        tasks = {"chain_sum": {**SUMS["chain_sum"], "languages": languages}}
        with pytest.raises(ValueError, match=message):
            load_prompts(replace(config, gym_tasks=tasks), "train")


def test_gym_mixes_tasks_and_says_what_is_wrong() -> None:
    tasks = {**SUMS, "gcd": {}}
    config = DataConfig(source="gym", gym_tasks=tasks, num_train=10, num_dev=5, num_held_out=5)
    names = [prompt.metadata["gym_dataset"] for prompt in load_prompts(config, "train")]
    assert names == ["chain_sum", "gcd"] * 5
    two = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}
    with pytest.raises(ValueError, match="distinct held_out questions of 512"):
        load_splits(DataConfig(source="gym", gym_tasks=two, num_train=10))
    with pytest.raises(ValueError, match="no such task; near: chain_sum"):
        load_splits(DataConfig(source="gym", gym_tasks={"chain_sums": {}}, num_train=10))
    with pytest.raises(ValueError, match="reasoning-gym refuses"):
        load_splits(DataConfig(source="gym", gym_tasks={"chain_sum": {"terms": 2}}, num_train=10))
    with pytest.raises(ValueError, match=r"loaded from file, gym"):
        load_splits(DataConfig(source="tiny"))
