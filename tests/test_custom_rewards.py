"""A user's own rewards, the gate, and the penalties."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from r1fast.config import ConfigError
from r1fast.options import parse, read_config, to_toml
from r1fast.records import Prompt, Rollout
from r1fast.rewards.custom import load_custom, record_custom
from r1fast.rewards.penalties import overlong, repetition
from r1fast.scorer import Scorer, written

FILE = '''
from r1fast.rewards import Score

def length_penalty(prompt, rollout):
    """Longer is worse."""
    return -len(rollout.text) / 100

def typed(prompt, rollout, weight=2.0):
    return Score(weight, "partial")

def fails(prompt, rollout):
    return 1 / 0

def says(prompt, rollout):
    return "good"

def unknown(prompt, rollout):
    return Score(float("nan"), "ok")

def huge(prompt, rollout):
    return 10**400

def one(prompt):
    return 1.0

number = 3
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my.py"
    path.write_text(FILE)
    return path


def answered(answer: str = "14") -> Rollout:
    prompt = Prompt(id="p", text="q", token_ids=(1,), answer="14")
    return written(prompt, f"<think> so </think> <answer> {answer} </answer>")


def test_a_reward_of_a_file_is_weighed_like_any_other(file: Path) -> None:
    weights = {"math": {"accuracy": 1.0, "length_penalty": ((0, 0.5), (5, 0.0)), "typed": 0.25}}
    scorer = Scorer(weights, custom=[f"{file}:length_penalty", f"{file}:typed"])
    rollout = answered()
    early, late = scorer.score([rollout], 0)[0], scorer.score([rollout], 5)[0]
    assert early.reward == pytest.approx(1.0 - 0.5 * len(rollout.text) / 100 + 0.25 * 2.0)
    assert late.reward == pytest.approx(1.5)
    assert early.parts == {"accuracy": 1.0, "length_penalty": -len(rollout.text) / 100, "typed": 2.0}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fails", "line 12: ZeroDivisionError"),
        ("says", "returned 'good'"),
        ("unknown", r"returned Score\(value=nan, outcome='ok', by_program=False\), which is no finite number"),
        ("huge", "returned 1000"),
    ],
)
def test_what_goes_wrong_inside_is_a_typed_crash(file: Path, name: str, why: str) -> None:
    scorer = Scorer({"math": {"accuracy": 1.0, name: 1.0}}, custom=[f"{file}:{name}"])
    scored = scorer.score([answered()])[0]
    assert scored.outcome == "crash" and scored.reward == 1.0
    assert scorer.take_metrics()[f"outcome/{name}/crash_count"] == 1
    with pytest.raises(RuntimeError, match=why):
        scorer.score([answered()] * 64)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.py:f", "none.py does not exist .*give the path"),
        ("{file}:penalty", "no function penalty; it has length_penalty, typed, fails, says, unknown, huge, one"),
        ("{file}:number", "no function number"),
        ("{file}:one", r"called with \(prompt, rollout\), but: too many positional arguments; write def one"),
        ("{file}", "must be FILE.py:NAME"),
        ("{broken}:f", "broken.py failed: NameError: name 'nothing' is not defined"),
    ],
)
def test_errors_say_what_to_do(file: Path, spec: str, message: str) -> None:
    broken = file.with_name("broken.py")
    broken.write_text("nothing")
    with pytest.raises(ValueError, match=message):
        load_custom([spec.format(file=file, broken=broken)])
    with pytest.raises(ValueError, match="exists already"):
        load_custom([f"{file}:length_penalty"], taken=["length_penalty"])


def test_the_command_line_names_it_and_the_run_keeps_its_text(file: Path, tmp_path: Path) -> None:
    words = ["--rewards", f"{file}:length_penalty", "--rewards.math.length_penalty", "0.1", "--scoring.gate", "format"]
    words += [f"--rewards.{kind}.format={weight}" for kind, weight in (("general", 0.2), ("harmful", 0.2))]
    config = parse([*words, "--pipeline.stages", "base,r1_zero"]).config
    assert config.scoring.custom == (f"{file}:length_penalty",) and config.scoring.gate == "format"
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert read_config(tmp_path / "config.toml") == config
    record_custom(config.scoring.custom, tmp_path)
    record_custom(config.scoring.custom, tmp_path)  # a run that goes on
    assert (tmp_path / "rewards" / "my.py").read_text() == FILE
    file.write_text(FILE + "\n")
    with pytest.raises(ValueError, match=r"is not what the run in .* began with"):
        record_custom(config.scoring.custom, tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--rewards my.py:f", "reward f has no weight; give one, --rewards.KIND.f 1.0"),
        ("--rewards my.py", "must be FILE.py:NAME"),
        ("--scoring.gate style", "scoring.gate = 'style' must be a rule reward"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse([*words.split(), "--pipeline.stages", "base,r1_zero"])


def test_behind_a_gate_nothing_pays_but_penalties_stay(file: Path) -> None:
    weights = {"math": {"accuracy": 1.0, "format": 0.5, "length_penalty": 1.0}}
    scorer = Scorer(weights, custom=[f"{file}:length_penalty"], gate="format")
    prompt = answered().prompt
    open_, closed = scorer.score([answered(), written(prompt, "<answer> 14 </answer>")])
    assert open_.reward == pytest.approx(1.5 - len(open_.rollout.text) / 100)
    assert closed.parts["accuracy"] == 1.0
    assert closed.reward == pytest.approx(-len(closed.rollout.text) / 100)


def test_overlong_is_dapos() -> None:
    base = answered()
    for length, value in ((0, 0.0), (80, 0.0), (85, -0.25), (90, -0.5), (100, -1.0), (101, -1.0)):
        rollout = replace(base, token_ids=torch.zeros(length, dtype=torch.int64), max_tokens=100)
        assert overlong(base.prompt, rollout).value == pytest.approx(value)
    with pytest.raises(ValueError, match="no max_tokens"):
        overlong(base.prompt, base)


def test_repetition_counts_what_came_before() -> None:
    prompt = answered().prompt
    fresh = " ".join(f"word{i}" for i in range(100))
    assert repetition(prompt, written(prompt, fresh)).value == 0.0
    assert repetition(prompt, written(prompt, "short short short")).value == 0.0
    twice = repetition(prompt, written(prompt, f"{fresh} {fresh}"))
    assert twice.value == pytest.approx(-85 / 185)  # 185 16-grams, 100 of them distinct
    assert repetition(prompt, written(prompt, "等等" * 500)).value < -0.99
