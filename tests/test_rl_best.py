"""An RL stage keeps the model of its best dev reading, and says what saving took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import open_context, save_model, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1fast.metrics import read_metrics
from r1fast.stages import rl
from r1fast.stages.rl import RLLoop


def test_the_model_of_the_best_reading_is_kept_and_saving_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {0: 0.9, 1: 0.25, 2: 0.5, 3: 0.5, 4: 0.25}  # before the first step it is another stage's model
    config = tiny_config(
        save_model(tmp_path / "model"),
        **{"stages__r1_zero__steps": 4, "rl__lr": 1e-2, "rl__dev_every_steps": 1, "data__num_train": 64},
        rewards__math__language_any=1.0,
        run__save_every_steps=1,
        run__keep_best="accuracy",
    )
    looped = RLLoop(open_context(config, tmp_path / "run"), "r1_zero")
    looped.context.console.stage_start("r1_zero", 4)
    monkeypatch.setattr(rl, "dev_reading", lambda *_: {"dev/accuracy": values[looped.step]})
    kept: dict[int, dict[str, torch.Tensor]] = {}
    update = looped._update

    def remember(*arguments: Any) -> None:
        update(*arguments)
        kept[looped.step] = {name: x.clone() for name, x in looped.policy.module.state_dict().items()}

    monkeypatch.setattr(looped, "_update", remember)
    looped.run()
    looped.context.writer.wait()
    directory = looped.context.directory("r1_zero") / "best"
    assert json.loads((directory / "best.json").read_text()) == {"metric": "accuracy", "value": 0.5, "step": 2}
    best = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    assert all(torch.equal(best[name], x) for name, x in kept[2].items())
    assert AutoTokenizer.from_pretrained(directory).eos_token == looped.policy.tokenizer.eos_token
    lines = read_metrics(tmp_path / "run")
    assert [line.get("r1_zero/best_step") for line in lines] == [None, 1.0, 2.0, None, None]
    saved = [line["time/save_s"] for line in lines[1:]]
    assert saved[0] == 0.0 and all(0 < seconds < 10 for seconds in saved[1:])
