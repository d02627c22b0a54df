"""A file behind the protocol of a source."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import plus_one, write_jsonl

from r1fast.config import DataConfig
from r1fast.data.source import PromptSource
from r1fast.rewards import REWARDS, Score
from r1fast.scorer import written


def test_the_source_has_no_general_data(tmp_path: Path) -> None:
    source = PromptSource(DataConfig(source="file", file=write_jsonl(tmp_path / "a.jsonl", plus_one(12)), num_dev=2))
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
        with pytest.raises(ValueError, match="is empty, and the stage needs it"):
            call()
