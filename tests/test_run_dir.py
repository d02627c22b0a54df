"""A run's directory, read from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1fast.config import STAGES, ConfigError
from r1fast.distributed import lock_run_dir
from r1fast.options import parse, to_toml
from r1fast.run_dir import lock_holder, open_config, stage_directory, unfinished_stages


def test_stages_are_numbered_as_r1_runs_them(tmp_path: Path) -> None:
    names = [stage_directory(tmp_path, stage).name for stage in STAGES]
    assert names == sorted(names) and names[0] == "00-base" and names[-1] == "11-evaluation"


def test_unfinished_stages(tmp_path: Path) -> None:
    config = parse(["--pipeline.stages", "base,r1_zero"]).config
    assert unfinished_stages(config, tmp_path) == ("base", "r1_zero")
    stage_directory(tmp_path, "base").mkdir(parents=True)
    assert unfinished_stages(config, tmp_path) == ("base", "r1_zero")  # begun
    (stage_directory(tmp_path, "base") / "result.json").write_text("{}")
    assert unfinished_stages(config, tmp_path) == ("r1_zero",)


def test_who_holds_a_run(tmp_path: Path) -> None:
    assert lock_holder(tmp_path) is None
    held = lock_run_dir(tmp_path)
    assert lock_holder(tmp_path) == lock_holder(tmp_path) == str(os.getpid())
    held.close()
    assert lock_holder(tmp_path) is None
    lock_run_dir(tmp_path).close()  # to look leaves no lock


def test_a_directory_that_is_no_run_names_those_beside_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.toml; give a run's directory, for example runs/tiny"):
        open_config(tmp_path / "tiny")
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "config.toml").write_text(to_toml(parse(["--recipe", "smoke"]).config), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"runs beside it: {tmp_path}/smoke"):
        open_config(tmp_path / "tiny")
    assert open_config(tmp_path / "smoke").run.name == "smoke"


def test_reading_a_run_needs_no_model_library() -> None:
    code = "import sys, r1fast.doctor.run; print('transformers' in sys.modules)"
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).stdout == "False\n"
