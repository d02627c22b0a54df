"""Pass rates of a model, from scripted completions; what is measured is not measured again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import ScriptedEngine, save_model, tiny_config

from r1fast.config import ConfigError
from r1fast.data import measure
from r1fast.data.command import main
from r1fast.data.measure import measure_difficulty
from r1fast.records import Prompt
from r1fast.tiny.tokenizer import build_tokenizer

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


def test_rates_of_another_model_or_sampling_are_not_passed_off_as_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, out = save_model(tmp_path / "model"), tmp_path / "rates.jsonl"
    engine = ScriptedEngine(script)
    monkeypatch.setattr(measure, "make_engine", lambda policy, config: engine)
    config = tiny_config(model, rl__temperature=0.8)
    measure_difficulty(config, out, samples=4, num_prompts=3)
    row = json.loads(out.read_text().splitlines()[0])
    assert (row["model"], row["samples"], row["temperature"]) == (str(config.model.path), 4, 0.8)
    assert (row["top_p"], row["max_tokens"]) == (1.0, 12)
    other = tiny_config(save_model(tmp_path / "other"), rl__temperature=0.8)
    for view, samples, message in (
        (config, 8, "line 1: its pass rate has samples = 4, and this measurement samples = 8; give another --out"),
        (tiny_config(model, rl__temperature=0.3), 4, "temperature = 0.8, and this measurement temperature = 0.3"),
        (tiny_config(model, rl__temperature=0.8, rl__top_p=0.5), 4, "this measurement top_p = 0.5"),
        (tiny_config(model, rl__temperature=0.8, stages__r1_zero__max_tokens=7), 4, "this measurement max_tokens = 7"),
        (other, 4, "this measurement model = "),
    ):
        with pytest.raises(ConfigError, match=message):
            measure_difficulty(view, out, samples=samples, num_prompts=3)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    out.write_text("".join(json.dumps({"prompt": row["prompt"], "pass_rate": 1.0}) + "\n" for row in rows))
    with pytest.raises(ConfigError, match="line 1: its pass rate has no model"):
        measure_difficulty(config, out, samples=4, num_prompts=3)
    assert len(engine.calls) == 1 and len(measure.read_pass_rates(out)) == 3


@pytest.mark.parametrize(
    ("stages", "root", "instructed"),
    [("base,r1_zero", "base", True), ("sft_1,rl_1", "base", False), ("student_rl", "student", True)],
)
def test_samples_are_those_of_the_first_rl_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: str, root: str, instructed: bool
) -> None:
    stage = stages.split(",")[-1]
    changes = {"temperature": 0.8, "top_p": 0.9, "max_tokens": 10, "rollout.rows": 32}
    options: dict[str, Any] = {f"stages.{stage}.{name}": value for name, value in changes.items()}
    if "sft_1" in stages:
        options |= {"stages.sft_1.files": '{"a.jsonl" = 1.0}', "stages.sft_1.steps": 1}
    config = tiny_config(save_model(tmp_path / "model"), pipeline__stages=stages, **options)
    asked: list[Prompt] = []

    def answer(prompt: Prompt, number: int) -> str:
        asked.append(prompt)
        return script(prompt, number)

    engine = ScriptedEngine(answer)
    monkeypatch.setattr(measure, "make_engine", engine)
    real, loaded = measure.load_model, []
    monkeypatch.setattr(measure, "load_model", lambda *args, **kw: loaded.append(args[2]) or real(*args, **kw))
    measure_difficulty(config, tmp_path / "rates.jsonl", samples=4, num_prompts=9)
    assert [len(ids) for ids, _, _ in engine.calls] == [8, 1] and loaded == [root]
    sampling = engine.calls[0][2]
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (0.8, 0.9, 10)
    assert ("<instruction>" in build_tokenizer().decode(list(asked[0].token_ids))) == instructed


def test_a_prompt_that_takes_the_place_of_others_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, engine = tiny_config(save_model(tmp_path / "model")), ScriptedEngine(script)
    prompts = list(measure.open_source(config).prompts("train")[:3])
    monkeypatch.setattr(
        measure, "open_source", lambda config: SimpleNamespace(prompts=lambda split: [*prompts, *prompts[1:]])
    )
    monkeypatch.setattr(measure, "make_engine", engine)
    assert measure_difficulty(config, tmp_path / "rates.jsonl", samples=4) == [0.75] * 5
    assert [ids for ids, _, _ in engine.calls] == [[prompt.id for prompt in prompts]]


def test_a_kill_when_it_goes_on_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = tiny_config(save_model(tmp_path / "model")), tmp_path / "rates.jsonl"
    monkeypatch.setattr(measure, "make_engine", ScriptedEngine(script))
    measure_difficulty(config, out, samples=4, num_prompts=3)
    before = out.read_bytes()

    def killed(*_: object) -> None:
        assert out.read_bytes() == before
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            measure_difficulty(config, out, samples=4, num_prompts=4)
    assert out.read_bytes() == before


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
