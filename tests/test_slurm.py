"""The README's Slurm script: valid, and run here on one node, with `scontrol` and `srun` played."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"```bash\n(#!/usr/bin/env bash\n#SBATCH.*?)```", README, re.S)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    assert len(SCRIPTS) == 1
    path = tmp_path / "job.sh"
    path.write_text(SCRIPTS[0], encoding="utf-8")
    return path


def test_the_script_is_valid_and_asks_for_what_it_uses(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    nodes = re.search(r"--gpus-per-node=(\d+)", text)
    assert nodes and f"GPUS_PER_NODE:-{nodes[1]}" in text
    for word in ("--nnodes", "--rdzv_backend c10d", "--ntasks-per-node=1", "-m r1fast.train"):
        assert word in text


def test_the_script_runs_on_one_node(script: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"scontrol": "echo localhost; echo other", "srun": 'exec "$@"'}.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7"}
    own = {"GPUS_PER_NODE": "1", "PORT": "0", "RECIPE": "smoke", "RUN_DIR": str(tmp_path / "run")}
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, **slurm, **own, "PATH": path, "PYTHONPATH": str(ROOT)}
    command = ["bash", str(script), "--pipeline.stages", "base"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "run" / "summary.json").exists()
