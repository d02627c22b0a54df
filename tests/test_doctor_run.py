"""The doctor on runs: recorded ones that went wrong by a real misconfiguration (bench/bad_runs.py), a good one, and
runs that are unfinished, running or dead."""

from __future__ import annotations

import gzip
import os
import shutil
import time
from pathlib import Path

import pytest

from bench.bad_runs import RUNS as MISCONFIGURED
from r1fast.config import ConfigError
from r1fast.distributed import lock_run_dir
from r1fast.doctor.line import Line
from r1fast.doctor.run import SILENT_S, ago, check_run, command, num_steps
from r1fast.failure import write_failure
from r1fast.options import parse

RECORDINGS = Path(__file__).parent / "data" / "runs"


def findings(run_dir: Path) -> list[Line]:
    return [line for line in check_run(run_dir) if line.status in ("warn", "fail")]


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A finished run of the recipe tiny."""
    run_dir = shutil.copytree(RECORDINGS / "good", tmp_path / "good")
    packed = run_dir / "metrics.jsonl.gz"
    (run_dir / "metrics.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return run_dir


def test_every_misconfiguration_is_recorded() -> None:
    assert {path.name for path in RECORDINGS.iterdir()} == {*MISCONFIGURED, "good"}


def test_a_good_run_has_nothing_wrong(good: Path) -> None:
    lines = list(check_run(good))
    assert [line for line in lines if line.status != "ok"] == []
    assert {line.name for line in lines} == {
        *("run", "r1_zero", "cold_start", "sft_1", "rl_1", "rejection", "sft_2", "reward_models", "rl_2", "distill"),
        *("student_rl", "evaluation"),
    }
    assert lines[0].value == "finished, 12 stages"


def unfinished(good: Path, stage: str = "08-rl_2") -> Path:
    """The run as if it had ended within a stage: no result of it or of any later one."""
    for folder in (good / "stages").iterdir():
        if folder.name >= stage:
            (folder / "result.json").unlink()
    lines = (good / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if '"stage": "rl_2"' in line)
    (good / "metrics.jsonl").write_text("".join(lines[: last - 4]) + '{"stage": "rl_2", "st', encoding="utf-8")
    return good


def test_a_run_that_stopped_says_where_and_how_to_go_on(good: Path) -> None:
    (line,) = findings(unfinished(good))
    assert line.status == "fail" and line.name == "run"
    assert line.value.startswith("stopped in stage rl_2 (9 of 12), after step 15 of 20 without a message (SIGTERM, ")
    assert line.fix == "it continues with: python -m r1fast.train --run runs/good --run.seed 1"


def test_a_run_that_died_says_of_what(good: Path) -> None:
    try:
        raise RuntimeError("the gradient's norm is inf at step 16\nand more")
    except RuntimeError as error:
        write_failure(unfinished(good), "rl_2", error)
    (line,) = findings(good)
    assert line.status == "fail"
    assert "in stage rl_2 (9 of 12), after step 15 of 20: RuntimeError: the gradient's norm is inf at" in line.value
    assert "test_doctor_run.py:" in line.value and "and more" not in line.value
    assert line.fix.startswith("repair the cause, then: python -m r1fast.train")


def test_a_run_that_is_running_is_not_wrong_unless_it_is_silent(good: Path) -> None:
    with lock_run_dir(unfinished(good)):
        running = next(iter(check_run(good)))
        assert (running.status, findings(good)) == ("ok", [])
        assert running.value.startswith(f"running in process {os.getpid()}: stage rl_2 (9 of 12), after step 15 of 20")
        long_ago = time.time() - 2 * SILENT_S
        os.utime(good / "metrics.jsonl", (long_ago, long_ago))
        (silent,) = findings(good)
        assert silent.status == "warn" and "last figures 30 minutes ago" in silent.value
        assert f"py-spy dump --pid {os.getpid()}" in silent.fix


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    shutil.copy(RECORDINGS / "good" / "config.toml", tmp_path)
    (line,) = check_run(tmp_path)
    assert line.status == "fail" and line.value.startswith("stopped in stage base (1 of 12) without a message")


def test_what_is_no_run_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.toml"):
        check_run(tmp_path)
    shutil.copy(RECORDINGS / "good" / "config.toml", tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{\n", encoding="utf-8")
    (line,) = check_run(tmp_path)
    assert line.status == "fail" and "metrics.jsonl, line 1 is not JSON" in line.value


def test_it_only_reads(good: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in unfinished(good).rglob("*")}
    list(check_run(good))
    assert {path: path.stat().st_mtime_ns for path in good.rglob("*")} == before


def test_how_to_go_on_without_a_command(tmp_path: Path) -> None:
    assert command(tmp_path) == f"python -m r1fast.train --recipe {tmp_path}/config.toml --run.dir {tmp_path}"


def test_steps_of_stages() -> None:
    config = parse([]).config
    assert [num_steps(config, stage) for stage in ("rl_1", "sft_2", "reward_models", "evaluation")] == [30, 120, 320, 0]


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "5 seconds"), (90, "90 seconds"), (600, "10 minutes"), (9000, "2 hours"), (3e5, "3 days")]
)
def test_ago(seconds: float, text: str) -> None:
    assert ago(seconds) == text
