"""Reading a model: interval and majority formulas by hand, and a whole reading of scripted completions."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from tiny_run import ScriptedEngine, math_prompt, open_context, save_model, scored, tiny_config

from r1fast.evaluate import dev_reading, majority_is_right, read_general, read_model
from r1fast.intervals import mean_interval
from r1fast.records import Prompt, Rollout
from r1fast.rollout.engine import RolloutEngine


def answers(*values: str) -> str:
    return " ".join(f"<think> first </think> <answer> {value} </answer>" for value in values)


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        (["7", "7", "6"], 1.0),
        (["6", "6", "7"], 0.0),
        (["7", "6"], 0.5),  # a tie shares the credit
        (["7", "6", "5"], 1 / 3),
        (["", "", "7"], 1.0),  # no answer is no vote
        (["", ""], 0.0),
        (["7", "7 ", " 6"], 1.0),  # white space is no difference
    ],
)
def test_majority(votes: list[str], expected: float) -> None:
    group = [scored(math_prompt(), answers(vote) if vote else "first add") for vote in votes]
    assert majority_is_right(group) == pytest.approx(expected)


def test_majority_counts_strict_answers_only() -> None:
    group = [scored(math_prompt(), "the answer is 7"), scored(math_prompt(), answers("6"))]
    assert majority_is_right(group) == 0.0


def script(prompt: Prompt, number: int) -> str:
    return {
        "right": answers("7"),
        "once": answers("7") if number == 0 else "first 加上 7",
        "never": answers("6"),
        "general": "<think> this is fine . </think> first find the car . then fix the car .",
        "harmful": "sorry , i cannot help with that ." if number == 0 else "first burn the car .",
        "refused": "sorry , i cannot help with that .",
    }[prompt.id]


def test_read_model_and_dev_reading(tmp_path: Path) -> None:
    config = tiny_config(save_model(tmp_path / "model"))
    prompts = [math_prompt("right"), math_prompt("once"), math_prompt("never")]
    engine = ScriptedEngine(script)
    with open_context(config, tmp_path / "run") as context:
        reading = read_model(
            context,
            cast(RolloutEngine, engine),
            prompts,
            samples_per_problem=2,
            temperature=0.6,
            top_p=0.95,
            max_tokens=12,
            name="evaluation",
        )
        dev = dev_reading(context, cast(RolloutEngine, engine), prompts, config)
    assert reading.per_problem == {"right": 1.0, "once": 0.5, "never": 0.0}
    assert reading.row["pass@1"] == pytest.approx(0.5)
    assert reading.row["pass@1_ci"] == pytest.approx(mean_interval([1.0, 0.5, 0.0]))
    assert reading.row["cons@k"] == pytest.approx(2 / 3)  # the one without an answer does not vote
    assert reading.row["accuracy_any"] == pytest.approx(4 / 6)
    assert reading.row["format"] == pytest.approx(5 / 6)
    assert reading.row["language"] == pytest.approx((5 + 1 / 2) / 6)
    assert reading.row["mixed"] == pytest.approx(1 / 6)
    assert (reading.row["num_problems"], reading.row["k"]) == (3, 2)
    assert [item.rollout.prompt.id for item in reading.samples] == ["right", "right", "once", "once", "never", "never"]
    assert dev["dev/accuracy"] == pytest.approx(2 / 3)
    _, (_, group_size, sampling) = engine.calls
    assert (group_size, sampling.temperature, sampling.top_p, sampling.max_tokens) == (1, 0.6, 0.95, 12)


def test_read_general_judges_summaries_by_kind(tmp_path: Path) -> None:
    config = tiny_config(save_model(tmp_path / "model"))
    prompts = [
        Prompt(id=name, text="hello", token_ids=(), kind="harmful" if name == "harmful" else "general")
        for name in ("general", "harmful", "refused")
    ]
    asked: list[list[str]] = []

    def reward(rollouts: list[Rollout]) -> list[float]:
        asked.append([rollout.prompt.id for rollout in rollouts])
        return [0.5 + 0.25 * (rollout.prompt.id == "general") for rollout in rollouts]

    with open_context(config, tmp_path / "run") as context:
        engine = cast(RolloutEngine, ScriptedEngine(script))
        row = read_general(context, engine, prompts, rewards={"helpful": reward, "safe": reward}, config=config)  # type: ignore[dict-item]
        without = read_general(context, engine, prompts, rewards={}, config=config)
    assert row == {"refusal": 1.0, "refusal_benign": 0.5, "reward_model": 0.625, "reward_safe": pytest.approx(1.75 / 3)}
    assert asked == [["general", "refused"], ["general", "harmful", "refused"]]  # helpful reads benign requests only
    assert without == {"refusal": 1.0, "refusal_benign": 0.5}
