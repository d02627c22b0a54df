"""The slow proofs of the main job: `pytest --slow tests/test_acceptance.py` (about an hour and a half on two cores)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_tiny_shows_what_it_must_on_three_seeds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.tiny", "--seeds", "0", "1", "2", "--runs", str(tmp_path), "--name", "tiny"]
    subprocess.run(command, cwd=ROOT, check=True)


@pytest.mark.slow
def test_smollm2_learns_within_an_hour(tmp_path: Path) -> None:
    model = os.environ.get("R1FAST_SMOLLM2", "models/smollm2")
    if not (ROOT / model).is_dir():
        pytest.skip(f"{model} is not there; the README says how to make it (or set R1FAST_SMOLLM2)")
    command = [sys.executable, "-m", "bench.smollm2", "--model", model, "--run", str(tmp_path / "run")]
    subprocess.run(command, cwd=ROOT, check=True)
