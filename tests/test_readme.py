"""The README's commands, as written; the training ones on the short recipe."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEST = "pytest -n 2 --dist loadfile"
COMMANDS = [
    line.split("  #")[0].strip() for line in re.findall(r"^    ((?:pip|torchrun|python|pytest)\b.*)$", README, re.M)
]


def call(command: str, *more: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the README with this interpreter's environment first on the path."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    words = [*shlex.split(command), *more]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_the_readme_names_set_up_main_job_and_tests() -> None:
    for command in ("pip install -e .", "torchrun -m r1fast.train", 'pip install -e ".[test]"', TEST):
        assert command in COMMANDS


def test_ci_installs_and_tests_by_the_readmes_commands() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(r'pip install (--quiet )?-e "\.\[test\]"', ci)
    assert re.search(rf"^\s*{TEST}\b", ci, re.M)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.endswith(("--help", "--dry-run"))])
def test_help_and_dry_run(command: str) -> None:
    result = call(command)
    assert result.returncode == 0, result.stderr
    assert ("--rl.lr" if command.endswith("--help") else "evaluation") in result.stdout


def test_the_main_job_by_its_command(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = call("torchrun -m r1fast.train", "--recipe", "smoke", "--run.dir", str(run))
    assert result.returncode == 0, result.stdout + result.stderr
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["eval"])[:2] == ["base", "r1_zero"]
    assert "student_distilled" in result.stdout


def test_recipes_files_and_options_that_the_readme_names_exist() -> None:
    for name in re.findall(r"`(r1fast/[\w./]+|kernels/|bench/)`", README):
        assert (ROOT / name).exists(), name
    for name in ("tiny", "tiny-no-language", "smollm2-zero", "smollm2-r1", "smoke", "r1"):
        assert f"`{name}`" in README
        assert (ROOT / "r1fast" / "recipes" / f"{name}.toml").exists()
