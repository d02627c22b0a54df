"""R1-Zero and SFT on adapters: only they change, it goes on bitwise, and later stages load what it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_run import open_context, save_model, tiny_config, without_times
from torch import Tensor

from r1fast.context import write_lines
from r1fast.data.examples import read_messages
from r1fast.metrics import read_metrics
from r1fast.source import Example
from r1fast.stages.rl import RLLoop, run_rl
from r1fast.stages.sft import example_row, run_sft
from tests.tiny_run import math_prompt

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def config_of(model: Path, **options: Any) -> Any:
    defaults: dict[str, Any] = {"stages__r1_zero__steps": 3, "rl__lr": 1e-2, "rl__dev_every_steps": 0}
    defaults |= {"data__num_train": 16, "rewards__math__language_any": 1.0, "run__save_every_steps": 1}
    defaults |= {"rl__reference_refresh_steps": 2, "loss__kl_coef": 0.1, "lora__rank": 4}
    return tiny_config(model, **(defaults | options))


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_r1_zero(model: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(model, run__dtype=dtype)
    with open_context(config, tmp_path / "whole") as whole:
        run_rl(whole, "r1_zero")
    lines = [line for line in read_metrics(whole.run_dir) if line["step"]]
    for line in lines:
        assert line["r1_zero/grad_norm"] > 0
        assert line["r1_zero/logp_gap_max"] <= (1e-5 if dtype == "float32" else 0.5)
    kl = [line["r1_zero/kl"] for line in lines]
    assert kl[0] < 1e-6 < kl[1]  # the base, adapters off; refreshed after step 2
    assert kl[2] < kl[1]
    base, found = weights(model), weights(whole.directory("r1_zero") / "checkpoint")
    adapted = {name for name in base if "_proj" in name}
    assert found.keys() == base.keys() and adapted
    for name, value in base.items():
        assert torch.equal(value.to(found[name].dtype), found[name]) == (name not in adapted)
    assert (whole.directory("r1_zero") / "adapter" / "adapter_model.safetensors").exists()

    update = RLLoop._rollout_and_update

    def stopping(self: RLLoop) -> None:
        if self.step >= 2:
            raise KeyboardInterrupt
        update(self)

    with monkeypatch.context() as patched, open_context(config, tmp_path / "parts") as parts:
        patched.setattr(RLLoop, "_rollout_and_update", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_rl(parts, "r1_zero")
    with open_context(config, tmp_path / "parts") as parts:
        run_rl(parts, "r1_zero")
    assert without_times(read_metrics(parts.run_dir)) == without_times(read_metrics(whole.run_dir))
    again = weights(parts.directory("r1_zero") / "checkpoint")
    assert all(torch.equal(again[name], value) for name, value in found.items())
    state = max((whole.directory("r1_zero") / "state").glob("step-*.pt"), key=lambda path: path.name)
    names = torch.load(state, weights_only=True)["trainer"]["names"]
    assert names and all("lora_" in name for name in names)  # a state has no weights
    assert state.stat().st_size < 40 * sum(value.numel() for value in base.values()) / 4


def test_sft(model: Path, tmp_path: Path) -> None:
    config = config_of(model, stages__sft_1__steps=2, stages__sft_1__batch_size=4, sft__lr=1e-2)
    with open_context(config, tmp_path) as context:
        examples = [Example(prompt=math_prompt(f"q{n}"), response="<answer> 7 </answer>") for n in range(8)]
        path = context.directory("cold_start") / "examples.jsonl"
        path.parent.mkdir(parents=True)
        write_lines(path, [example_row(example) for example in examples])
        assert len(read_messages(str(path))) == 8
        run_sft(context, "sft_1")
        lines = [line for line in read_metrics(context.run_dir) if line["step"]]
        assert lines[1]["sft_1/loss"] < lines[0]["sft_1/loss"]
        policy = context.load("sft_1", stage="rl_1")  # the next stage starts from merged weights
        assert not any("lora_" in name for name, _ in policy.module.named_parameters())
