"""The doctor on runs: recorded ones that went wrong by a real misconfiguration (bench/bad_runs.py), a good one, and
runs that are unfinished, running or dead."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest

from bench.bad_runs import RUNS as MISCONFIGURED
from r1fast.doctor.line import Line
from r1fast.doctor.run import check_run

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
