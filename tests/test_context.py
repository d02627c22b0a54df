"""What stages share: directories, models with their templates, results, files that are whole or not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import math_prompt, open_context, save_model, scored, tiny_config

from r1fast.config import STAGES
from r1fast.context import CONVERSATIONAL, ROWS, START, compute_dtype, read_lines, write_json, write_lines
from r1fast.tiny.templates import CHAT, R1_ZERO
from r1fast.tiny.tokenizer import build_tokenizer


def test_tables_of_stages_agree() -> None:
    assert set(START) | {"base", "evaluation"} == set(STAGES)
    assert set(CONVERSATIONAL) < set(STAGES)
    order = [*STAGES, "student"]
    assert all(origin == "student" or order.index(origin) < order.index(stage) for stage, origin in START.items())
    assert set(ROWS.values()) <= set(order)


def test_load_gives_each_stage_its_model_and_template(tmp_path: Path) -> None:
    base, trained = save_model(tmp_path / "base", 0), tmp_path / "run" / "stages" / "03-sft_1" / "checkpoint"
    save_model(trained, 1)
    config = tiny_config(base, optimizer__gradient_checkpointing="true")
    with open_context(config, tmp_path / "run") as context:
        assert context.directory("sft_1") == trained.parent
        policies = {
            "base": context.load("base"),
            "sft_1 from base": context.load("base", stage="sft_1"),
            "trained": context.load("sft_1"),
        }
    templates = {name: policy.tokenizer.chat_template for name, policy in policies.items()}
    assert templates == {"base": R1_ZERO, "sft_1 from base": CHAT, "trained": CHAT}
    weights = {name: policy.head_weight for name, policy in policies.items()}
    assert torch.equal(weights["base"], weights["sft_1 from base"])
    assert not torch.equal(weights["base"], weights["trained"])
    assert all(policy.gradient_checkpointing for policy in policies.values())


def test_a_stage_has_its_own_way_of_keeping_activations(tmp_path: Path) -> None:
    own: dict[str, Any] = {
        f"stages__rl_1__optimizer__{name}": "true" for name in ("gradient_checkpointing", "offload_activations")
    }
    with open_context(tiny_config(save_model(tmp_path / "model"), **own), tmp_path / "run") as context:
        for stage, is_on in (("r1_zero", False), ("rl_1", True)):
            policy = context.load("base", stage=stage)
            assert (policy.gradient_checkpointing, policy.offload_activations) == (is_on, is_on)


def test_the_end_of_a_turn_ends_a_completion(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", 0)
    config = tiny_config(base)
    turns = tmp_path / "turns.jinja"
    turns.write_text("{% for m in messages %}{{ m['content'] }} <pad>{% endfor %}", encoding="utf-8")
    config = replace(config, model=replace(config.model, template=str(turns)))
    with open_context(config, tmp_path / "run") as context:
        policy = context.load("base")
    assert policy.eos_token_ids == (policy.tokenizer.eos_token_id, policy.tokenizer.pad_token_id)


def test_results_mark_finished_stages(tmp_path: Path) -> None:
    config = tiny_config(save_model(tmp_path / "model"))
    with open_context(config, tmp_path / "run") as context:
        assert context.result("base") is None
        context.finish("base", {"accuracy": 0.5})
        assert context.result("base") == {"accuracy": 0.5}
        other = replace(context, ranks=replace(context.ranks, rank=1))
        other.finish("r1_zero", {})
        assert context.result("r1_zero") is None  # only rank 0 writes


def test_truncate_forgets_metrics_and_samples_of_repeated_steps(tmp_path: Path) -> None:
    config = tiny_config(save_model(tmp_path / "model"))
    text = "<think> 等等\u2028 first </think> <answer> 7 </answer>"  # holds a line separator that JSON leaves as it is
    with open_context(config, tmp_path / "run") as context:
        context.console.stage_start("rl_1", 4)
        for step in (1, 2, 3):
            context.log("rl_1", step, {"reward": float(step)})
            context.write_samples("rl_1", step, [scored(math_prompt(), text)] * 2, build_tokenizer())
        context.truncate("rl_1", 3)
        context.log("rl_1", 3, {"reward": -3.0})
        samples = context.directory("rl_1") / "samples.jsonl"
        assert [row["step"] for row in read_lines(samples)] == [1, 1, 2, 2]
        assert read_lines(samples)[0]["response"] == text
        with samples.open("a", encoding="utf-8") as file:
            file.write('{"step": 3, "prom')  # killed while writing
        context.truncate("rl_1", 2)
        assert [row["step"] for row in read_lines(samples)] == [1, 1]
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [(line["step"], line["rl_1/reward"]) for line in lines] == [(1, 1.0)]


def test_a_samples_file_torn_within_a_character_is_mended(tmp_path: Path) -> None:
    config = tiny_config(save_model(tmp_path / "model"))
    with open_context(config, tmp_path / "run") as context:
        samples = context.directory("rl_1") / "samples.jsonl"
        samples.parent.mkdir(parents=True)
        samples.write_bytes('{"step": 1, "prompt": "等"}\n{"step": 1, "prompt": "等'.encode()[:-1])
        context.truncate("rl_1", 2)
        assert read_lines(samples) == [{"step": 1, "prompt": "等"}]


def test_logged_steps_of_a_stage_come_back(tmp_path: Path) -> None:
    config = tiny_config(save_model(tmp_path / "model"))
    with open_context(config, tmp_path / "run") as context:
        context.console.stage_start("rl_1", 2)
        for stage, step in (("sft_1", 1), ("rl_1", 0), ("rl_1", 1), ("rl_1", 2)):
            context.log(stage, step, {"reward": step / 7})
        assert [(line["step"], line["rl_1/reward"]) for line in context.logged("rl_1")] == [(1, 1 / 7), (2, 2 / 7)]
        assert replace(context, metrics=None).logged("rl_1") == []


def test_a_corrupt_result_counts_as_none_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(save_model(tmp_path / "model"))
    with open_context(config, tmp_path / "run") as context:
        context.finish("base", {"accuracy": 0.5})
        path = context.directory("base") / "result.json"
        path.write_bytes(path.read_bytes()[:-3])
        assert context.result("base") is None
    output = capsys.readouterr().out
    assert f"{path} is corrupt" in output and "base counts as unfinished and runs again" in output


def test_models_are_whole_or_not_there(tmp_path: Path) -> None:
    config = tiny_config(save_model(tmp_path / "model"))
    with open_context(config, tmp_path / "run") as context:

        def half(directory: Path) -> None:
            (directory / "config.json").touch()
            raise OSError("no space left")

        def save_half() -> Callable[[Path], None]:
            return half

        with pytest.raises(OSError, match="no space"):
            context.save_model("sft_1", "checkpoint", save_half)
        assert not (context.directory("sft_1") / "checkpoint").exists()
        context.save_model("sft_1", "checkpoint", context.load("base").saver)
        assert context.load("sft_1").module.num_parameters() > 0
        replace(context, ranks=replace(context.ranks, rank=1)).save_model("sft_1", "checkpoint", save_half)


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    write_json(tmp_path / "new" / "a.json", {"text": "等等", "n": 1})
    assert json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8")) == {"text": "等等", "n": 1}
    with pytest.raises(TypeError):
        write_json(tmp_path / "new" / "a.json", {"text": object()})
    assert json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8"))["n"] == 1
    rows = [{"text": "a\nb", "n": 1}, {"text": "等等", "n": 2}]
    write_lines(tmp_path / "b.jsonl", rows)
    assert read_lines(tmp_path / "b.jsonl") == rows


@pytest.mark.parametrize(
    ("dtype", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("bfloat16", "cpu", torch.bfloat16),
        ("float32", "cuda", torch.float32),
    ],
)
def test_compute_dtype(tmp_path: Path, dtype: str, device: str, expected: torch.dtype) -> None:
    config = tiny_config(save_model(tmp_path / "model"), run__dtype=dtype)
    assert compute_dtype(config, torch.device(device)) == expected
