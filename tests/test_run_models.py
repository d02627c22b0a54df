"""The models of a run by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1fast.config import Config, ConfigError
from r1fast.context import ROWS, write_json
from r1fast.options import parse
from r1fast.run_dir import stage_directory
from r1fast.run_models import PREFERRED, choose_model, run_models


def finish(run_dir: Path, *stages: str) -> None:
    for stage in stages:
        write_json(stage_directory(run_dir, stage) / "result.json", {})


@pytest.fixture
def config() -> Config:
    return parse([]).config


def test_names_are_rows_and_stages(config: Config, tmp_path: Path) -> None:
    models = run_models(config, tmp_path)
    assert set(ROWS) <= set(models) and {"rl_2", "distill", "student", "base"} <= set(models)
    assert models["r1"].origin == models["rl_2"].origin == "rl_2"
    assert models["student_base"].origin == "student"
    assert set(PREFERRED) <= set(ROWS)


def test_only_the_models_of_the_pipeline(tmp_path: Path) -> None:
    config = parse(["--pipeline.stages", "base,r1_zero"]).config
    assert set(run_models(config, tmp_path)) == {"base", "r1_zero"}


def test_without_a_name_the_last_that_is_finished(config: Config, tmp_path: Path) -> None:
    assert choose_model(run_models(config, tmp_path)).name == "base"
    finish(tmp_path, "r1_zero", "sft_1")
    assert choose_model(run_models(config, tmp_path)).name == "sft_1"
    finish(tmp_path, "rl_2")
    assert choose_model(run_models(config, tmp_path)).name == "r1"


def test_an_unknown_model_gets_near_names_and_all_there_are(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model 'r1_zer0' is not in this run: did you mean r1_zero.* its models are"):
        choose_model(run_models(config, tmp_path), "r1_zer0")
    with pytest.raises(ConfigError, match=r"model 'xyz' is not in this run: its models are base, r1_zero, sft_1"):
        choose_model(run_models(config, tmp_path), "xyz")


def test_an_unfinished_model_is_refused(config: Config, tmp_path: Path) -> None:
    finish(tmp_path, "r1_zero")
    with pytest.raises(
        ConfigError, match=r"model 'r1': stage rl_2 is not finished.*finished are base, r1_zero, student"
    ):
        choose_model(run_models(config, tmp_path), "r1")
