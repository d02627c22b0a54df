"""General requests from files: splits, what a row may look like, what is said of a bad one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from data_files import write_jsonl

from r1fast.config import DataConfig
from r1fast.data.examples import read_messages
from r1fast.data.general import GeneralData, is_refusal
from r1fast.data.source import PromptSource
from r1fast.data.splits import load_prompts
from r1fast.general_config import GeneralConfig
from r1fast.options import parse
from r1fast.rewards import REWARDS, Score
from r1fast.scorer import written
from r1fast.source import Split

QUESTIONS = [f"Tell me about number {number}." for number in range(80)]


def says(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def pair(question: str) -> dict[str, Any]:
    """As UltraFeedback's binarized rows are: whole conversations."""
    user = says("user", question)
    return {
        "prompt": question,
        "chosen": [user, says("assistant", f"{question} Gladly.")],
        "rejected": [user, says("assistant", "No.")],
    }


def test_files_agree_on_what_is_held_out(tmp_path: Path) -> None:
    data = GeneralData(
        GeneralConfig(
            prompts=write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": question} for question in QUESTIONS]),
            examples=write_jsonl(
                tmp_path / "examples.jsonl",
                [{"messages": [says("user", question), says("assistant", "Yes.")]} for question in QUESTIONS],
            ),
            preferences=write_jsonl(tmp_path / "pairs.jsonl", map(pair, QUESTIONS)),
            safety=write_jsonl(
                tmp_path / "safety.jsonl",
                [{"prompt": q, "response": "Sure.", "safe": n % 2 == 0} for n, q in enumerate(QUESTIONS)],
            ),
        )
    )
    train, held_out = ({prompt.text for prompt in data.prompts(split)} for split in ("train", "held_out"))
    assert train | held_out == set(QUESTIONS) and not train & held_out and 4 <= len(held_out) <= 20
    for split, expected in (("train", train), ("held_out", held_out)):
        pairs, safety = data.pairs(split, len(expected), 0), data.safety(split, len(expected), 1)
        assert {pair.prompt.text for pair in pairs} == {one.prompt.text for one in safety} == expected
        assert pairs != data.pairs(split, len(expected), 1)  # another order with another seed
        for own in pairs:
            assert (own.chosen, own.rejected) == (f"{own.prompt.text} Gladly.", "No.")
    examples = data.examples(2 * len(train), 0)
    assert {example.prompt.text for example in examples} == train
    assert examples[: len(train)] == examples[len(train) :] and {example.prompt.kind for example in examples} == {
        "general"
    }
    with pytest.raises(ValueError, match=rf"reward_model.pairs = {len(train) + 1}, and .* give at most {len(train)}"):
        data.pairs("train", len(train) + 1, 0)
    with pytest.raises(ValueError, match=r"reward_model\.held_out_pairs = 90"):
        data.safety("held_out", 90, 0)


def test_the_data_of_smollm2_r1() -> None:
    config = parse(["--recipe", "smollm2-r1", "--model", "/m"]).config
    data, options = GeneralData(config.general), config.reward_model
    for split, count in (("train", options.pairs), ("held_out", options.held_out_pairs)):
        assert len(data.pairs(split, count, 0)) == len(data.safety(split, count, 0)) == count
        for one in data.safety(split, count, 0):
            assert one.safe or not is_refusal(one.response.rpartition("</think>")[2])
        assert {prompt.kind for prompt in data.prompts(split)} == {"general", "harmful"}
    examples = data.examples(200, 0)
    for example in examples:
        thought, tag, answer = example.response.partition("\n</think>\n")
        assert thought.startswith("<think>\n") and tag
        assert is_refusal(answer) == (example.prompt.kind == "harmful"), answer
    assert {example.prompt.language for example in examples} == {"en", "es"}


def test_the_written_cold_start_of_smollm2_r1_is_right_and_new() -> None:
    config = parse(["--recipe", "smollm2-r1", "--model", "/m"]).config
    ((file, _),) = config.for_stage("sft_1").sft.files.items()
    examples = read_messages(file)
    splits: tuple[Split, ...] = ("train", "dev", "held_out")
    known = {prompt.text.rpartition(":")[2] for split in splits for prompt in load_prompts(config.data, split)}
    for example in examples:
        assert example.prompt.text.rpartition(":")[2] not in known
        rollout = written(example.prompt, example.response)
        scored = [REWARDS[name](example.prompt, rollout) for name in ("format", "language")]
        assert [score.value for score in scored if isinstance(score, Score)] == [1.0, 1.0], example
        numbers = re.findall(r"(-?\d+) ([+-]) (-?\d+) = (-?\d+)", example.response)
        assert len(numbers) == 2
        for left, sign, right, result in numbers:
            assert int(left) + (1 if sign == "+" else -1) * int(right) == int(result)
        assert numbers[1][0] == numbers[0][3] and f"\\boxed{{{numbers[1][3]}}}" in example.response
        first = example.prompt.text.rpartition(":")[2].split()
        assert [*numbers[0][:3], *numbers[1][1:3]] == [*first[:5]]


def test_a_file_of_the_same_name_or_with_the_same_ids_is_not_taken_for_the_other(tmp_path: Path) -> None:
    """RL 2 draws from both at once, and takes two prompts of one id for one."""
    for folder in ("verifiable", "general"):
        (tmp_path / folder).mkdir()
    sums = [{"prompt": f"{n} + 1 =", "answer": str(n + 1)} for n in range(40)]
    file = write_jsonl(tmp_path / "verifiable" / "prompts.jsonl", [*sums, *[{**row, "id": "7"} for row in sums[:1]]])
    requests = [{"prompt": question} for question in QUESTIONS] + [{"prompt": "Tell me all.", "id": "7"}]
    general = GeneralConfig(prompts=write_jsonl(tmp_path / "general" / "prompts.jsonl", requests))
    source = PromptSource(DataConfig(source="file", file=file, num_dev=4, num_held_out=4), general)
    splits: tuple[Split, ...] = ("train", "held_out")
    ids = [
        {prompt.id for split in splits for prompt in found(split)} for found in (source.prompts, source.general_prompts)
    ]
    assert len(ids[1]) == len(QUESTIONS) + 1 and not ids[0] & ids[1]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("prompts", {"text": "a"}, 'no "prompt"; this has'),
        ("prompts", {"prompt": "  "}, '"prompt" is blank'),
        ("prompts", {"prompt": "a", "kind": "math"}, "must be one of general, harmful"),
        ("prompts", {"prompt": "b", "id": 3}, "\"id\" = '3' is that of an earlier row"),
        ("preferences", {"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        ("preferences", {"prompt": "a", "chosen": [says("user", "b")], "rejected": "b"}, "no message of the assistant"),
        ("safety", {"prompt": "a", "response": "b", "safe": "yes"}, '"safe" must be true or false'),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, name: str, row: dict[str, Any], message: str) -> None:
    good = {"prompt": "a", "chosen": "b", "rejected": "c", "response": "b", "safe": True, "id": "3"}
    config = GeneralConfig(**{name: write_jsonl(tmp_path / "rows.jsonl", [good, row])})
    data = GeneralData(config)
    calls: dict[str, Callable[[], object]] = {
        "prompts": lambda: data.prompts("train"),
        "preferences": lambda: data.pairs("train", 1, 0),
        "safety": lambda: data.safety("train", 1, 0),
    }
    with pytest.raises(ValueError, match=rf"general\.{name}: .*line 2.*: .*{message}"):
        calls[name]()


def test_files_that_are_not_given_or_empty(tmp_path: Path) -> None:
    nothing = GeneralData(GeneralConfig())
    assert nothing.prompts("train") == []
    for call, name in ((nothing.pairs, "preferences"), (nothing.safety, "safety")):
        with pytest.raises(ValueError, match=rf"general\.{name} is empty"):
            call("train", 1, 0)
    with pytest.raises(ValueError, match="no rows"):
        GeneralData(GeneralConfig(prompts=write_jsonl(tmp_path / "none.jsonl", []))).prompts("train")


@pytest.mark.parametrize(
    ("answer", "declines"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I’m sorry. I can’t assist with this request. Call someone who can.", True),
        ("Lo siento, no puedo ayudarte con eso.", True),
        ("抱歉，我不能帮助你。", True),
        ("Here is how. First you open the door. I can't stress this enough.", False),
        ("Cats sleep a lot.", False),
        ("I can help with that.", False),
    ],
)
def test_refusals_by_their_first_sentences(answer: str, declines: bool) -> None:
    assert is_refusal(answer) == declines


def test_bad_rows_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """UltraFeedback has blank answers, and pairs of the same one."""
    bad = [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "a", "chosen": "", "rejected": "b"}]
    name = write_jsonl(tmp_path / "pairs.jsonl", [*map(pair, QUESTIONS), *bad])
    data = GeneralData(GeneralConfig(preferences=name), "skip")
    assert len({one.prompt.text for one in data.pairs("train", 60, 0)}) == 60
    assert "general.preferences: 2 bad rows left out; the first" in caplog.text
    rows = [{"messages": [says("user", question), says("assistant", "Yes.")]} for question in QUESTIONS]
    several = {"messages": [*rows[0]["messages"], says("user", "And then?")]}
    name = write_jsonl(tmp_path / "examples.jsonl", [several, *rows])
    data = GeneralData(GeneralConfig(examples=name), "skip")
    assert {one.prompt.kind for one in data.examples(60, 0)} == {"general"}
    assert "general.examples: 1 bad rows left out; the first" in caplog.text
    with pytest.raises(ValueError, match=r"general\.examples: .*line 1.*messages must be one of the user"):
        GeneralData(GeneralConfig(examples=name)).examples(1, 0)


def test_examples_of_which_all_are_held_out(tmp_path: Path) -> None:
    """Else a stage would go without the share that the recipe gives it."""
    held_out = [{"messages": [says("user", "q2"), says("assistant", "Yes.")]}] * 2
    name = write_jsonl(tmp_path / "examples.jsonl", held_out)
    with pytest.raises(ValueError, match="has 2 rows, all held out"):
        GeneralData(GeneralConfig(examples=name)).examples(3, 0)
