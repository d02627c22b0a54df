"""Pass rates of a model, from scripted completions; what is measured is not measured again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import ScriptedEngine, save_model, tiny_config

from r1fast.config import ConfigError
from r1fast.data import measure
from r1fast.data.command import main
from r1fast.data.measure import measure_difficulty
from r1fast.records import Prompt

RIGHT = 3


def script(prompt: Prompt, number: int) -> str:
    return f"<think> {number} </think> <answer> {prompt.answer if number < RIGHT else 'none'} </answer>"


def test_rates_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(save_model(tmp_path / "model"), data__num_train=20, rollout__rows=16)
    engine, out = ScriptedEngine(script), tmp_path / "out" / "rates.jsonl"
    monkeypatch.setattr(measure, "make_engine", lambda policy, config: engine)
    assert measure_difficulty(config, out, samples=4, num_prompts=6) == [0.75] * 6
    assert [len(ids) for ids, _, _ in engine.calls] == [4, 2]
    out.write_text(out.read_text() + '{"prompt": "torn')
    assert measure_difficulty(config, out, samples=4, num_prompts=8) == [0.75] * 8
    assert [len(ids) for ids, _, _ in engine.calls] == [4, 2, 2]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 8 and {row["samples"] for row in rows} == {4}
    with pytest.raises(ConfigError, match="--samples 0 must be at least 1"):
        measure_difficulty(config, out, samples=0)


def test_the_command_measures_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "rates.jsonl", tmp_path / "report.json"
    words = ["--recipe", "smoke", "--data.num_train", "8", "--rl.max_tokens", "8", "--rollout.rows", "16"]
    options = ["--out", str(out), "--samples", "2", "--prompts", "4", "--report", str(report)]
    assert main(["difficulty", *options, "--", *words]) == 0
    printed = capsys.readouterr().out
    assert f"4 prompts, 2 samples each: {out}" in printed and len(out.read_text().splitlines()) == 4
    found = json.loads(report.read_text())
    assert found["prompts"] == 4 and sum(found["histogram"].values()) == 4
    assert main(["difficulty", "--out", str(out), "--", "--recipe", "none"]) == 2
    assert "recipe 'none' does not exist" in capsys.readouterr().err
