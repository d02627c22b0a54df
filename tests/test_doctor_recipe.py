"""Whether a recipe can run here: each check on a recipe that passes it and on one that does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import copy_teacher, edit_json, sums, truncated, write_rows
from tiny_model import tiny_policy
from tiny_run import save_model

from r1fast.config import Config
from r1fast.context import load_model
from r1fast.distributed import lock_run_dir
from r1fast.doctor import recipe
from r1fast.doctor.line import Line
from r1fast.doctor.recipe import Look, check_recipe, format_line, groups_line, length_line, pass_line
from r1fast.options import parse, to_toml
from r1fast.start import open_source

SHORT = ["--recipe", "tiny", "--pipeline.stages", "base,r1_zero", "--data.num_train", "64", "--rl.group_size", "4"]
OWN = ["--data.num_dev", "8", "--data.num_held_out", "8", "--rl.dev_problems", "8"]


def checked(config: Config, run_dir: Path) -> dict[str, Line]:
    return {line.name: line for line in check_recipe(config, run_dir)}


def on_model(model: Path, data: Path, *words: str) -> Config:
    return parse([*SHORT, *OWN, "--model", str(model), "--data", str(data), *words]).config


def test_a_recipe_that_can_run(tmp_path: Path) -> None:
    lines = checked(parse(SHORT).config, tmp_path / "run")
    assert [line.name for line in lines.values() if line.status != "ok"] == []
    assert list(lines) == [
        *("run directory", "data", "files", "disk", "memory", "model base", "end tokens", "template"),
        *("format", "pass rate", "length", "groups"),
    ]
    assert lines["data"].value == "tiny: 64 train, 256 dev, 512 held_out prompts"
    assert "1,035,136 parameters, float32 on cpu" in lines["model base"].value
    assert lines["end tokens"].value == "'<eos>' (2)"
    assert lines["template"].value == "r1_zero: 8 of 8 gold answers are read back right"
    assert "of 8 prompts x 4 samples are right" in lines["pass rate"].value
    assert not (tmp_path / "run").exists()


def test_the_student_is_looked_at_too(tmp_path: Path) -> None:
    words = [*SHORT, "--pipeline.stages", "student_rl"]
    del words[2:4]
    assert "148,672 parameters" in checked(parse(words).config, tmp_path / "run")["model student"].value


def test_the_samples_are_those_of_the_first_rollout_again_and_again(tmp_path: Path) -> None:
    first, second = (checked(parse(SHORT).config, tmp_path / "run") for _ in range(2))
    assert first["pass rate"] == second["pass rate"] and first["length"] == second["length"]


def test_a_prompt_that_takes_the_place_of_others_is_looked_at_once(tmp_path: Path) -> None:
    config = parse(SHORT).config
    first, second = open_source(config).prompts("train")[:2]
    policy = load_model(config, tmp_path, "base", torch.device("cpu"))
    source: Any = SimpleNamespace(prompts=lambda split: [first, second, first])
    look = Look.at(config, source, "base", policy)
    assert look is not None and [prompt.id for prompt in look.prompts] == [first.id, second.id]


def test_data_that_are_not_there(tmp_path: Path) -> None:
    lines = checked(on_model(tmp_path, tmp_path / "none.jsonl"), tmp_path / "run")
    assert list(lines) == ["run directory", "data"]
    assert lines["data"].status == "fail" and "cannot read (No such file or directory)" in lines["data"].value


def test_files_that_are_damaged(tmp_path: Path) -> None:
    model = truncated(copy_teacher(tmp_path / "model"))
    lines = checked(on_model(model, write_rows(tmp_path / "data.jsonl", sums(60))), tmp_path / "run")
    assert lines["input"].status == "fail" and "it is truncated or damaged" in lines["input"].value
    assert "model base" not in lines


def test_a_disk_that_is_too_small(small_disk: Callable[[str], Path]) -> None:
    line = checked(parse(SHORT).config, small_disk("size=8m") / "run")["disk"]
    assert line.status == "fail" and "8 MiB are free there, this run writes about" in line.value


@pytest.mark.parametrize(("available_bytes", "status"), [(600 << 20, "warn"), (1 << 20, "fail"), (8 << 30, "ok")])
def test_memory_that_may_or_will_not_suffice(
    available_bytes: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and optimizer are certain; activations and KV cache are bounds that few runs reach."""
    monkeypatch.setattr(recipe, "available_bytes", lambda: available_bytes)
    line = checked(parse(SHORT).config, tmp_path / "run")["memory"]
    assert line.status == status
    assert ("rollout.rows" in line.fix) == (status != "ok")


def test_an_end_token_that_the_model_cannot_draw(tmp_path: Path) -> None:
    model = copy_teacher(tmp_path / "model")
    for name in ("config.json", "generation_config.json"):
        edit_json(model / name, lambda fields: fields.update(eos_token_id=[2, 5000]))
    line = checked(on_model(model, write_rows(tmp_path / "data.jsonl", sums(60))), tmp_path / "run")["end tokens"]
    assert line.status == "fail"
    assert "the model has 398 tokens, so 5000 can never be drawn" in line.value


def test_a_tokenizer_that_loses_the_tags(tmp_path: Path) -> None:
    tiny_policy().save(tmp_path / "model")  # its words are w0, w1, ...
    config = on_model(tmp_path / "model", write_rows(tmp_path / "data.jsonl", sums(60)), "--model.template", "none")
    line = checked(config, tmp_path / "run")["template"]
    assert line.status == "fail"
    assert "none: 0 of 8 gold answers are read back right" in line.value
    assert "came back as '<unk> <unk> <unk>" in line.value and "(accuracy 0, format 0)" in line.value


def test_a_model_that_knows_nothing(tmp_path: Path) -> None:
    """Random weights with the right words: everything loads, and there is nothing for RL to start from."""
    config = parse(SHORT).config
    config = replace(config, model=replace(config.model, path=str(save_model(tmp_path / "model"))))
    lines = checked(config, tmp_path / "run")
    assert lines["template"].status == "ok"
    for name, fix in (("format", "template"), ("pass rate", "easier prompts"), ("groups", "rl.group_size")):
        assert lines[name].status == "warn" and fix in lines[name].fix, name
    assert lines["pass rate"].value.startswith("0% of 8 prompts x 4 samples are right")
    assert lines["groups"].value == "100% of 8 groups have equal rewards and teach nothing"


MEANS: Mapping[str, float] = {"format": 0.4, "accuracy": 0.3, "accuracy_any": 0.5, "length": 20.0, "truncated": 0.1}


@pytest.mark.parametrize(
    ("line", "status", "value"),
    [
        (format_line({**MEANS, "format": 0.0}, "8 x 8"), "warn", "0% of 8 x 8 samples have it, though 50% are right"),
        (format_line(dict(MEANS), "8 x 8"), "ok", "40% of 8 x 8 samples have it"),
        (pass_line({**MEANS, "accuracy": 0.97}, "8 x 8"), "warn", "97% of 8 x 8 samples are right"),
        (length_line({**MEANS, "truncated": 0.4}, 64, 64), "warn", "20 tokens, 40% cut off at 64"),
        (length_line({**MEANS, "truncated": 0.4}, 512, 4096), "ok", "40% cut off at 512 (the recipe's limit is 4,096"),
        (groups_line(0.5, 8), "ok", "50% of 8 groups have equal rewards"),
    ],
)
def test_what_the_samples_show(line: Line, status: str, value: str) -> None:
    assert line.status == status and value in line.value
    assert bool(line.fix) == (status == "warn")


def test_directories_that_are_taken(tmp_path: Path) -> None:
    config = parse(SHORT).config
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    line = next(iter(check_recipe(config, tmp_path)))
    assert (line.status, line.value) == ("ok", f"{tmp_path}: an unfinished run, which continues at base")
    line = next(iter(check_recipe(parse([*SHORT, "--rl.lr", "1"]).config, tmp_path)))
    assert line.status == "fail" and "with another recipe; it differs in rl.lr" in line.value
    with lock_run_dir(tmp_path):
        line = next(iter(check_recipe(config, tmp_path)))
    assert line.status == "fail" and "is in use by process" in line.value
    (tmp_path / "config.toml").write_text("[rl", encoding="utf-8")
    line = next(iter(check_recipe(config, tmp_path)))
    assert line.status == "fail" and "is not TOML" in line.value
