"""What continuing after a SIGKILL costs beside the steps that come again: `python -m bench.resume`.

One run with the models and data of `tiny` and few steps is killed in stages of each kind once a state has been saved.
Then the same command continues it, and beside it a copy in which that stage has not begun: seconds from the start of
the process to the first new line of metrics.jsonl, without what that line says its own step (and a dev reading before
it) took. `cpu` is the time that the process was computing: what a machine without other work would need.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from r1fast.metrics import METRICS_FILE, read_metrics

# stage -> the line after whose state it is killed
STAGES = {"r1_zero": 4, "sft_1": 6, "reward_models": 12, "rl_2": 4}
OPTIONS = {
    "pipeline.stages": '["r1_zero", "cold_start", "sft_1", "rl_1", "rejection", "sft_2", "reward_models", "rl_2"]',
    "rl.steps": 6,
    "rl.prompts_per_step": 4,
    "stages.r1_zero.steps": 6,
    "stages.rl_1.steps": 1,
    "stages.rl_2.steps": 6,
    "stages.rl_2.prompts_per_step": 4,
    "rl.dev_problems": 16,
    "cold_start.prompts": 256,
    "rejection.prompts": 256,
    "stages.sft_1.steps": 12,
    "stages.sft_2.steps": 12,
    "reward_model.steps": 20,
    "run.save_every_steps": 2,
}


def start(run_dir: Path) -> subprocess.Popen[bytes]:
    """The main job in a process of its own."""
    words = [word for key, value in OPTIONS.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "r1fast.train", "--recipe", "tiny", "--run", str(run_dir), *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def logged(run_dir: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of a stage so far; a file that is being replaced has none for a moment."""
    if not (run_dir / METRICS_FILE).exists():
        return []
    return [line for line in read_metrics(run_dir) if line["stage"] == stage]


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def first_line(run_dir: Path, stage: str, after: int) -> dict[str, float]:
    """Start the run, wait until `stage` logs a step after `after`, and end it; seconds without that step's own."""
    before = logged(run_dir, stage)  # the lines of steps that come again are there until the stage has begun
    process, began = start(run_dir), time.perf_counter()
    try:
        while not (lines := [line for line in logged(run_dir, stage) if line["step"] > after and line not in before]):
            if process.poll() is not None:
                raise RuntimeError(f"the run in {run_dir} ended before step {after + 1} of {stage}")
            time.sleep(0.01)
        wall_s, computing_s = time.perf_counter() - began, cpu_s(process)
    finally:
        process.kill()
        process.wait()
    own = [value for line in logged(run_dir, stage) if line["step"] in (0, lines[0]["step"]) for value in own_s(line)]
    return {"wall": wall_s - sum(own), "cpu": computing_s - sum(own) * computing_s / wall_s}


def own_s(line: dict[str, Any]) -> list[float]:
    """The seconds that a line says its step took."""
    return [line[key] for key in ("time/rollout_s", "time/update_s", "time/dev_s", "time/step_s") if key in line]


def kill_after(run_dir: Path, stage: str, step: int) -> int:
    """Let the run go on until `stage` has logged `step` and begun another; returns the step of the newest state."""
    process = start(run_dir)
    while not any(line["step"] > step for line in logged(run_dir, stage)):
        time.sleep(0.01)
    process.kill()
    process.wait()
    (folder,) = run_dir.glob(f"stages/*-{stage}/state")
    return max(int(path.name[5:13]) for path in folder.glob("step-*.pt"))


def main() -> None:
    """Measure every kind of stage, print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="of each measurement; the median counts")
    repeats = parser.parse_args().repeats
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        run_dir, copy = Path(folder) / "run", Path(folder) / "copy"
        for stage, step in STAGES.items():
            saved = kill_after(run_dir, stage, step)
            measured: dict[str, list[dict[str, float]]] = {"fresh": [], "resumed": []}
            for _ in range(repeats):
                for name, values in measured.items():
                    shutil.rmtree(copy, ignore_errors=True)
                    shutil.copytree(run_dir, copy)
                    if name == "fresh":
                        shutil.rmtree(next(copy.glob(f"stages/*-{stage}")))
                        forget(copy, stage)
                    values.append(first_line(copy, stage, 0 if name == "fresh" else saved))
            found[stage] = {
                f"{name}_{clock}_s": round(sorted(value[clock] for value in values)[repeats // 2], 2)
                for name, values in measured.items()
                for clock in ("wall", "cpu")
            }
            print(f"{stage:<14} killed after step {saved}: {found[stage]}", flush=True)
    print(json.dumps({"bench": "resume", "repeats": repeats, "stages": found}))


def forget(run_dir: Path, stage: str) -> None:
    """Take a stage's lines out of metrics.jsonl, as if it had not begun."""
    path = run_dir / METRICS_FILE
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["stage"] != stage]
    path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


if __name__ == "__main__":
    main()
