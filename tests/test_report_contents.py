"""What a page says of a run, read from every state a run's directory can be in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_run import HOSTILE, eval_row, folder, log, write_config, write_hostile_run, write_json_file, write_reading

from r1fast.config import ConfigError
from r1fast.intervals import mean_interval
from r1fast.report.contents import compare, read_run


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write_config(tmp_path, "base", "r1_zero", "evaluation", seed=5)
    run = read_run(tmp_path)
    assert (run["name"], run["seed"], run["finished"], run["wall_s"]) == ("made", 5, False, 0)
    assert [stage["done"] for stage in run["stages"]] == [False] * 3
    assert run["curves"] == run["groups"] == run["eval"] == run["examples"] == run["pairs"] == {}
    assert run["problems"] == {"num_problems": 0, "problems": []}
    assert run["last_written"] is None
    assert run["about"] == {"command": "by hand"} and run["config"] == (tmp_path / "config.toml").read_text()


def test_a_run_in_the_middle_of_a_stage(tmp_path: Path) -> None:
    write_hostile_run(tmp_path)
    run = read_run(tmp_path)
    assert not run["finished"] and run["last_written"].endswith("UTC")
    states = {stage["name"]: (stage["done"], stage["section"], stage["steps"]) for stage in run["stages"]}
    assert states["r1_zero"] == (True, "rl", 9) and states["rl_1"] == (False, "rl", 9)
    assert run["curves"]["rl_1"]["last"] == 3 and run["wall_s"] == 3.0
    assert list(run["groups"]) == ["rl_1"]
    assert run["examples"]["cold_start"]["examples"][0]["prompt"] == HOSTILE[0]
    assert run["stages"][2]["result"][f"yield/{HOSTILE[0]}"] == 3


def test_steps_of_a_stage_are_its_own_or_its_sections_or_what_it_found(tmp_path: Path) -> None:
    write_config(
        tmp_path, "r1_zero", "rl_1", "sft_1", rl={"steps": 9}, stages__rl_1__rl={"steps": 4}, sft={"epochs": 2}
    )
    write_json_file(folder(tmp_path, "sft_1") / "result.json", {"steps": 17, "wall_s": 1.0})
    assert [stage["steps"] for stage in read_run(tmp_path)["stages"]] == [9, 4, 17]


def test_while_evaluation_goes_on_the_table_has_the_models_it_has_read(tmp_path: Path) -> None:
    write_config(tmp_path, "base", "r1_zero", "sft_1", "evaluation")
    write_reading(tmp_path, "r1_zero", eval_row(0.75), {"a": 1.0})
    write_reading(tmp_path, "base", eval_row(0.25), {"a": 0.0})
    log(tmp_path, "evaluation", {1: {"base/pass@1": 0.25}, 2: {"r1_zero/pass@1": 0.75}, 3: {"sft_1/pass@1": 0.5}})
    run = read_run(tmp_path)
    assert {name: row["pass@1"] for name, row in run["eval"].items()} == {"base": 0.25, "r1_zero": 0.75}
    assert list(run["eval"]) == ["base", "r1_zero"]  # in the order of the chain
    assert list(run["problems"]["problems"][0]["answers"]) == ["base", "r1_zero"]


def test_a_finished_run_has_its_summary(tmp_path: Path) -> None:
    write_config(tmp_path, "base", "evaluation", seed=1)
    table = {"base": eval_row(0.25, **{"pass@1_ci": [0.125, float("nan")]})}
    pairs = {"r1 - base": {"mean": 0.5, "ci": [0.25, 0.75], "num_problems": 4}}
    summary = {"eval": table, "pairs": pairs, "seed": 7, "versions": {"torch": "2"}, "wall_s": 3.0, "world_size": 2}
    write_json_file(tmp_path / "summary.json", summary)
    for stage in ("base", "evaluation"):
        write_json_file(folder(tmp_path, stage) / "result.json", {"wall_s": 1.5})
    run = read_run(tmp_path)
    assert run["finished"] and run["wall_s"] == 3.0 and run["seed"] == 7
    assert run["pairs"] == pairs and run["summary"] == {"world_size": 2, "versions": {"torch": "2"}}
    assert run["eval"]["base"]["pass@1_ci"] == [0.125, "NaN"]  # JSON has no number for it
    json.dumps(run, allow_nan=False)


def test_a_run_without_its_config_lists_the_stages_it_left(tmp_path: Path) -> None:
    log(tmp_path, "rl_1", {1: {"reward": 1.0}})
    folder(tmp_path, "rl_1")
    run = read_run(tmp_path)
    assert [stage["name"] for stage in run["stages"]] == ["rl_1"]
    assert run["name"] == tmp_path.name and run["seed"] is None


@pytest.mark.parametrize(("name", "words"), [("empty", "holds no run"), ("missing", "does not exist")])
def test_what_is_no_run_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"{name} {words}.*--run"):
        read_run(tmp_path / name)


@pytest.mark.parametrize(("name", "words"), [("config.toml", "is not TOML"), ("summary.json", "is not JSON")])
def test_a_broken_file_is_named(tmp_path: Path, name: str, words: str) -> None:
    write_config(tmp_path, "base")
    (tmp_path / name).write_text("{broken", encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{name} {words}.*remove it"):
        read_run(tmp_path)


def test_two_runs_are_compared_problem_by_problem_and_key_by_key(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    write_config(first, "base", "r1_zero", seed=0, rl={"steps": 9, "lr": 0.5})
    write_config(second, "base", "r1_zero", seed=1, rl={"steps": 9}, loss={"kl": "none"})
    write_reading(first, "r1_zero", eval_row(0.5), {"a": 1.0, "b": 0.5, "c": 0.5})
    write_reading(second, "r1_zero", eval_row(0.5), {"a": 0.5, "b": 0.5, "d": 0.5})
    write_reading(first, "base", eval_row(0.5), {"a": 1.0})
    for run_dir, models in ((first, ("base", "r1_zero")), (second, ("r1_zero",))):
        write_json_file(run_dir / "summary.json", {"eval": {name: eval_row(0.5) for name in models}})
    found = compare(first, second, (read_run(first, num_runs=2), read_run(second, num_runs=2)))
    low, high = mean_interval([0.5, 0.0])
    assert found["pairs"] == {"r1_zero": {"mean": 0.25, "ci": [low, high], "num_problems": 2}}
    assert {setting["key"]: setting["values"] for setting in found["settings"]} == {
        "run.seed": ["0", "1"],
        "rl.lr": ["0.5", "not set"],
        "loss.kl": ["not set", '"none"'],
    }
