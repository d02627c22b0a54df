"""What rewards add to a step: read from a stage's log; and data whose answers go to the verifiers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import math_prompt

from bench.rewards_share import STAGE, options, shares, write_derivatives
from r1fast.context import read_lines
from r1fast.options import parse
from r1fast.rewards.accuracy import accuracy
from r1fast.rewards.score import Check
from r1fast.scorer import written


def line(step: int, score_s: float, verify_s: float = 2.0) -> dict[str, object]:
    times = {"time/rollout_s": 6.0, "time/update_s": 4.0, "time/score_s": score_s, "time/verify_s": verify_s}
    return {"stage": STAGE, "step": step, **times}


def test_the_share_is_of_the_step_without_them_and_the_first_is_apart() -> None:
    found = shares([{"stage": STAGE, "step": 0}, line(1, 5.0), line(2, 0.0), line(3, 2.0), {"stage": "other"}])
    assert found["first_added"] == 1.0 and found["added"] == pytest.approx(0.125) and found["most_added"] == 0.25
    assert found["medians"] == {"score_s": 1.0, "verify_s": 2.0, "rollout_s": 6.0, "update_s": 4.0}


def test_without_verifiers_at_work_there_is_nothing_to_measure() -> None:
    with pytest.raises(RuntimeError, match="no verifier"):
        shares([line(1, 0.0), line(2, 0.0, verify_s=0.0)])
    with pytest.raises(RuntimeError, match="1 steps with rewards"):
        shares([line(1, 0.0)])


def test_the_answers_go_to_the_verifiers_and_the_command_line_is_one(tmp_path: Path) -> None:
    write_derivatives(tmp_path / "derivatives.jsonl")
    rows = read_lines(tmp_path / "derivatives.jsonl")
    assert len(rows) == 300 and rows[0]["answer"] == "2\\sin(2x) + 1"
    prompt = math_prompt(answer=rows[0]["answer"])
    asked = accuracy(prompt, written(prompt, "<think> a </think> <answer> 1 + 2\\sin(2x) </answer>"))
    assert isinstance(asked, Check)
    words = options(str(tmp_path), tmp_path / "derivatives.jsonl", 3, 1, "float32")
    config = parse(words).config.for_stage(STAGE)
    assert config.rl.steps == 3 and config.rewards["math"]["accuracy_any"] == 1.0
