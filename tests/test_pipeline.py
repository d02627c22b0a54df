"""Recipe `smoke` end to end, as a user starts it, and what a second launch of the same command does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from r1fast import pipeline
from r1fast.checkpoint import StateFolder
from r1fast.config import STAGES
from r1fast.context import ROWS, RunContext
from r1fast.metrics import read_metrics
from r1fast.pipeline import RUN, versions
from r1fast.tiny import source as tiny_source
from r1fast.train import main

SHORTER = {
    "data.num_train": 64,
    "data.num_dev": 8,
    "data.num_held_out": 8,
    "rl.prompts_per_step": 2,
    "rl.dev_problems": 4,
    "cold_start.prompts": 64,
    "rejection.prompts": 32,
    "reward_model.pairs": 16,
    "reward_model.held_out_pairs": 16,
    "sft.batch_size": 8,
    "run.tensorboard": "false",
}
COLUMNS = {
    "pass@1",
    "pass@1_ci",
    "cons@k",
    "accuracy_any",
    "format",
    "language",
    "tokens",
    "refusal",
    "reward_model",
    "num_problems",
    "k",
}


@dataclass(frozen=True)
class Launch:
    code: int
    output: str
    errors: str


def launch(run_dir: Path, **options: Any) -> Launch:
    words = ["--recipe", "smoke", "--run", str(run_dir)]
    for name, value in {**SHORTER, **options}.items():
        words += [f"--{name}", str(value)]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        code = main(words)
    return Launch(code, output.getvalue(), errors.getvalue())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Launch]:
    """One whole run."""
    run_dir = tmp_path_factory.mktemp("runs") / "smoke"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tiny_source, "GENERAL_HELD_OUT", 12)
        return run_dir, launch(run_dir)


def summary_of(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "summary.json").read_text(encoding="utf-8")))


def test_every_stage_has_code() -> None:
    assert list(RUN) == list(STAGES)


def test_it_finishes(finished: tuple[Path, Launch]) -> None:
    run_dir, first = finished
    assert first.code == 0, first.errors
    for number, stage in enumerate(STAGES):
        folder = run_dir / "stages" / f"{number:02d}-{stage}"
        assert (folder / "result.json").is_file(), stage
        assert not (folder / "state").exists(), stage
        assert f"{stage} done" in first.output
    assert "r1_zero 2/2" in first.output  # as many steps as are done
    assert {str(line["stage"]) for line in read_metrics(run_dir)} == set(STAGES)


def test_the_page_is_there_and_small(finished: tuple[Path, Launch]) -> None:
    assert 100_000 < (finished[0] / "report.html").stat().st_size < 5_000_000
    assert "report.html was not written" not in finished[1].output


def test_the_page_is_written_after_every_stage_and_is_not_worth_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def broken(run_dir: Path) -> None:
        seen.append(list(summary_of(run_dir)["stages"]))
        raise OSError("the disk is full")

    monkeypatch.setattr(pipeline, "write_report", broken)
    done = launch(tmp_path / "run", **{"pipeline.stages": '["base", "r1_zero"]'})
    assert done.code == 0, done.errors
    assert seen == [["base"], ["base", "r1_zero"], ["base", "r1_zero"]]  # after either stage, and of the whole
    assert done.output.count("report.html was not written (OSError: the disk is full)") == 3


def test_summary_has_the_schema(finished: tuple[Path, Launch]) -> None:
    summary = summary_of(finished[0])
    assert list(summary["eval"]) == list(ROWS)
    for row in summary["eval"].values():
        assert set(row) >= COLUMNS
        assert row["num_problems"] == 8 and row["k"] == 2
        low, high = row["pass@1_ci"]
        assert low <= row["pass@1"] <= high
        for column in ("pass@1", "cons@k", "accuracy_any", "format", "language", "refusal", "reward_model"):
            assert 0.0 <= row[column] <= 1.0, column
    assert summary["wall_s"] > 0 and 2**20 < summary["peak_pss_bytes"] < 4 * 2**30
    assert summary["seed"] == 0 and summary["world_size"] == 1
    assert summary["versions"]["torch"] == versions()["torch"] and "python" in summary["versions"]
    assert "student_distilled - student_rl" in summary["pairs"]
    assert set(summary["stages"]) == set(STAGES)


def test_checkpoints_load_with_transformers(finished: tuple[Path, Launch]) -> None:
    for stage in ("r1_zero", "sft_1", "rl_1", "sft_2", "rl_2", "distill", "student_rl"):
        path = finished[0] / "stages" / f"{list(STAGES).index(stage):02d}-{stage}" / "checkpoint"
        model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert model.generate(**ids, max_new_tokens=2, do_sample=False).shape[1] > ids["input_ids"].shape[1]


def test_a_finished_run_prints_its_table_and_exits_0(finished: tuple[Path, Launch]) -> None:
    run_dir, first = finished
    before = summary_of(run_dir)
    again = launch(run_dir)
    assert again.code == 0
    for text in (first.output, again.output):
        assert all(row in text for row in ROWS)
    assert again.output.count("finished before, skipped") == len(STAGES)
    assert summary_of(run_dir)["eval"] == before["eval"]
    assert summary_of(run_dir)["wall_s"] == before["wall_s"]


def test_another_recipe_is_refused_by_the_keys_that_differ(finished: tuple[Path, Launch]) -> None:
    refused = launch(finished[0], **{"rl.lr": 0.125, "run.seed": 3})
    assert refused.code == 2
    assert "rl.lr, run.seed" in refused.errors and "--run" in refused.errors
    talkative = launch(finished[0], **{"run.log_every_steps": 7})  # changes nothing that is computed
    assert talkative.code == 0


def test_what_a_kill_after_a_result_left_is_cleared_away(finished: tuple[Path, Launch], tmp_path: Path) -> None:
    run_dir = tmp_path / "copy"
    shutil.copytree(finished[0], run_dir)
    before = summary_of(run_dir)
    state = run_dir / "stages" / "04-rl_1" / "state"
    state.mkdir()
    (state / "step-00000002.partial").touch()
    (run_dir / "summary.json").unlink()
    assert launch(run_dir).code == 0
    assert not state.exists()
    after = summary_of(run_dir)
    assert {**after, "peak_pss_bytes": 0} == {**before, "peak_pss_bytes": 0}
    assert after["peak_pss_bytes"] >= before["peak_pss_bytes"]  # of all launches


def test_sigterm_lets_a_stage_write_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: tuple[Path, Launch]
) -> None:
    """The time of earlier launches counts, the stage after it does not begin."""
    run_dir = tmp_path / "copy"
    shutil.copytree(finished[0], run_dir)
    for stage in ("03-sft_1", "04-rl_1"):
        (run_dir / "stages" / stage / "result.json").unlink()
    StateFolder(run_dir / "stages" / "03-sft_1", pytest.fail).save_elapsed(1000.0)
    ran: list[str] = []

    def terminated(context: RunContext, stage: str) -> Mapping[str, Any]:
        ran.append(stage)
        context.console.stage_start(stage, 2)
        os.kill(os.getpid(), signal.SIGTERM)
        return {"steps": 2}

    monkeypatch.setattr(pipeline, "RUN", {**RUN, "sft_1": terminated, "rl_1": terminated})
    stopped = launch(run_dir)
    assert (stopped.code, ran) == (0, ["sft_1"]) and "stopped by SIGTERM" in stopped.errors
    result = json.loads((run_dir / "stages" / "03-sft_1" / "result.json").read_text(encoding="utf-8"))
    assert result["steps"] == 2 and 1000.0 < result["wall_s"] < 1060.0
    assert not (run_dir / "stages" / "04-rl_1" / "result.json").exists()


def test_an_unfinished_run_continues_and_skips_what_is_done(
    finished: tuple[Path, Launch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "copy"
    shutil.copytree(finished[0], run_dir)
    for stage in ("sft_1", "rl_2"):  # as if killed at the end of both, after their metrics were written
        (run_dir / "stages" / f"{list(STAGES).index(stage):02d}-{stage}" / "result.json").unlink()
    ran: list[str] = []

    def spy(name: str) -> Any:
        def stage(context: RunContext, stage: str) -> Mapping[str, Any]:
            ran.append(stage)
            return RUN[name](context, stage)

        return stage

    monkeypatch.setattr(pipeline, "RUN", {name: spy(name) for name in STAGES})
    again = launch(run_dir)
    assert again.code == 0, again.errors
    assert ran == ["sft_1", "rl_2"]
    lines = {d: [(x["stage"], x["step"]) for x in read_metrics(d)] for d in (finished[0], run_dir)}
    assert sorted(lines[run_dir]) == sorted(lines[finished[0]])
    sft = [
        {key: value for key, value in line.items() if not key.startswith("time/")}
        for d in lines
        for line in read_metrics(d)
        if line["stage"] == "sft_1"
    ]
    assert sft[: len(sft) // 2] == sft[len(sft) // 2 :]
    assert summary_of(run_dir)["eval"] == summary_of(finished[0])["eval"]
