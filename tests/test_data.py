"""Prompts from JSONL and reasoning-gym: distinct, disjoint, deterministic, with errors that name the line."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from r1fast.config import DataConfig
from r1fast.data import PromptSource, decontaminate, load_prompts, load_splits, words_of
from r1fast.data_jsonl import guess_language, read_prompts
from r1fast.records import Prompt
from r1fast.rewards import REWARDS, Score
from r1fast.scorer import Scorer, written

SUMS = {"chain_sum": {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 1}}


def write(path: Path, rows: list[object]) -> str:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    return str(path)


def rows(count: int, start: int = 0) -> list[object]:
    return [{"prompt": f"what is {i} plus 1 ?", "answer": str(i + 1)} for i in range(start, start + count)]


def test_jsonl_is_split_stably(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(100) + rows(10))  # ten questions twice
    config = DataConfig(source="jsonl", file=file, num_dev=10, num_held_out=20)
    splits = load_splits(config)
    assert {name: len(prompts) for name, prompts in splits.items()} == {"train": 70, "dev": 10, "held_out": 20}
    assert len({prompt.text for prompts in splits.values() for prompt in prompts}) == 100
    assert load_splits(config) == splits
    assert splits["train"][0].answer == str(int(splits["train"][0].text.split()[2]) + 1)
    # where a question goes does not depend on the order of the file
    shuffled = write(tmp_path / "b.jsonl", list(reversed(rows(100))))
    again = load_splits(DataConfig(source="jsonl", file=shuffled, num_dev=10, num_held_out=20))
    assert {p.text for p in again["held_out"]} == {p.text for p in splits["held_out"]}
    assert {p.text for p in again["dev"]} == {p.text for p in splits["dev"]}


def test_jsonl_with_files_of_its_own_drops_what_training_shares_with_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "in a small town by the sea ten fishers catch nine fish each how many"
    train = write(tmp_path / "t.jsonl", [*rows(20), {"prompt": f"Now: {long} again", "answer": 90}])
    dev = write(tmp_path / "d.jsonl", rows(4, start=18))
    held_out = write(tmp_path / "h.jsonl", [*rows(2), {"prompt": long, "answer": 90}])
    config = DataConfig(source="jsonl", file=train, dev_file=dev, held_out_file=held_out, num_dev=9, num_held_out=9)
    with caplog.at_level(logging.INFO, logger="r1fast.data"):
        splits = load_splits(config)
    assert {name: len(prompts) for name, prompts in splits.items()} == {"train": 16, "dev": 4, "held_out": 3}
    assert "dropped 5 of 21" in caplog.text


def test_a_short_file_keeps_half_for_training(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", rows(8))
    splits = load_splits(DataConfig(source="jsonl", file=file))
    assert {name: len(prompts) for name, prompts in splits.items()} == {"train": 4, "dev": 2, "held_out": 2}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a list"),
        ('{"prompt": "a"}', 'line 2: no "answer"'),
        ('{"answer": "1"}', 'line 2: no "prompt"'),
        ('{"prompt": "a", "answer": " "}', 'line 2: "answer"'),
        ('{"prompt": "a", "answer": true}', 'line 2: "answer"'),
        ('{"prompt": "", "answer": "1"}', 'line 2: "prompt"'),
        ('{"question": "a", "answer": "1"}', "line 2: unknown field 'question'"),
        ('{"prompt": "a", "answer": "1", "metadata": {"a": 1}}', 'line 2: "metadata"'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a", "answer": "1"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_a_missing_or_empty_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot read"):
        read_prompts(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.jsonl: no prompts"):
        read_prompts(tmp_path / "empty.jsonl")


def test_fields_and_language(tmp_path: Path) -> None:
    row = {"prompt": "三加四是多少？", "answer": 7, "id": "x", "kind": "code", "metadata": {"a": "b"}}
    file = write(tmp_path / "a.jsonl", [row, {"prompt": "hi", "answer": 2.5, "language": "fr"}])
    first, second = read_prompts(Path(file))
    assert first == Prompt(
        id="x", text="三加四是多少？", token_ids=(), kind="code", language="zh", answer="7", metadata={"a": "b"}
    )
    assert (second.id, second.language, second.answer, second.kind) == ("a-2", "fr", "2.5", "math")
    assert read_prompts(Path(file), "en")[0].language == "en"
    assert guess_language("12 + 3") == "en"


def test_ten_grams() -> None:
    def make(text: str) -> Prompt:
        return Prompt(id=text, text=text, token_ids=())

    held_out = [
        make("one two three four five six seven eight nine ten eleven"),
        make("short one"),
        make("小明有三个苹果和五个梨"),
    ]
    training = [
        make("so one two three four five six seven eight nine ten"),
        make("one two three four five six seven eight nine"),
        make("Short  ONE"),
        make("a short one"),
        make("问：小明有三个苹果和五个梨。"),
    ]
    kept, dropped = decontaminate(training, held_out, by_ngram=True)
    assert dropped == 3 and [prompt.text for prompt in kept] == [training[1].text, training[3].text]
    assert decontaminate(training, held_out, by_ngram=False)[1] == 1
    assert words_of("Ａ三b") == ("a", "三", "b")


def test_gym_splits_are_distinct_disjoint_and_scored_by_their_own_scorer() -> None:
    config = DataConfig(source="gym", gym_tasks=SUMS, num_train=300, num_dev=50, num_held_out=100)
    splits = load_splits(config)
    assert {name: len(prompts) for name, prompts in splits.items()} == {"train": 300, "dev": 50, "held_out": 100}
    everything = [prompt for prompts in splits.values() for prompt in prompts]
    assert len({prompt.text for prompt in everything}) == len({prompt.id for prompt in everything}) == 450
    assert load_splits(config) == splits
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
    with pytest.raises(ValueError, match=r"loaded from gym, jsonl"):
        load_splits(DataConfig(source="tiny"))


def test_the_source_has_no_general_data(tmp_path: Path) -> None:
    source = PromptSource(DataConfig(source="jsonl", file=write(tmp_path / "a.jsonl", rows(12)), num_dev=2))
    assert len(source.prompts("dev")) == 2
    prompt = source.prompts("train")[0]
    text = f"<think> a </think> \\boxed{{{prompt.answer}}}"
    assert REWARDS["accuracy"](prompt, written(prompt, text)) == Score(1.0, "ok")
    assert source.rewrite("a", "zh") == "a" and not source.is_refusal("no")
    assert source.general_prompts("train") == []
    for call in (
        lambda: source.general_examples(1, 0),
        lambda: source.preference_pairs("train", 1, 0),
        lambda: source.safety_examples("train", 1, 0),
    ):
        with pytest.raises(ValueError, match="verifiable prompts only"):
            call()
