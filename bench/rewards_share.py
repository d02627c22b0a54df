"""What rewards add to a training step: `python -m bench.rewards_share --model models/smollm2 [--json FILE]`.

A real RL stage, that of the recipe `smollm2-zero`, on derivatives: their answers are sines, which only math-verify
can compare, in processes of its own. These work while other groups are generated; what is left is what the stage waits
for them, `time/score_s` of a step's wall time. The first step, in which they start, is told apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.command import rounded, write
from bench.device import describe
from bench.harness import Figure
from r1fast.metrics import read_metrics

STAGE = "r1_zero"
LIMIT = 0.05  # of the step without them


def write_derivatives(path: Path) -> None:
    """Prompts whose answers only math-verify can compare."""
    rows = [
        {"prompt": f"Differentiate -cos({a}x) + {b}x.", "answer": f"{a}\\sin({a}x) + {b}", "id": f"{a} {b}"}
        for a in range(2, 22)
        for b in range(1, 16)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def options(model: str, data: Path, steps: int, threads: int, dtype: str) -> list[str]:
    recipe = ["--recipe", "smollm2-zero", "--model", model]
    sizes = ["--data.num_train", "200", "--data.num_dev", "16", "--data.num_held_out", "16"]
    stage = [f"--stages.{STAGE}.steps", str(steps), "--rl.dev_every_steps", "0", "--pipeline.stages", STAGE]
    rewards = [
        "--rewards.math.accuracy_any",
        "1.0",
        "--rl.zero_variance",
        "keep",
    ]  # groups are learned from, right or not
    run = ["--run.threads", str(threads), "--run.dtype", dtype]
    run += ["--run.tensorboard", "false", "--run.save_every_steps", "0"]
    return [*recipe, "--data", str(data), *sizes, *stage, *rewards, *run]


def shares(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a stage's lines: the rewards' share beyond the first step, and the medians behind it."""
    lines = [line for line in lines if line["stage"] == STAGE and "time/score_s" in line]
    if len(lines) < 2:
        raise RuntimeError(f"{len(lines)} steps with rewards were logged, at least 2 are needed; raise --steps")

    def added(line: dict[str, Any]) -> float:
        whole_s = line["time/rollout_s"] + line["time/update_s"]
        return float(line["time/score_s"] / (whole_s - line["time/score_s"]))

    later = lines[1:]
    if not all(line["time/verify_s"] > 0 for line in later):
        raise RuntimeError("no verifier worked in some step: there is nothing to measure")
    names = ("score_s", "verify_s", "rollout_s", "update_s")
    return {
        "steps": len(lines),
        "added": sum(map(added, later)) / len(later),
        "most_added": max(map(added, later)),
        "first_added": added(lines[0]),
        "medians": {name: statistics.median(line[f"time/{name}"] for line in later) for name in names},
    }


def main() -> None:
    """Run the stage, print what rewards added, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint (the README: how to get SmolLM2)")
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps")
    parser.add_argument("--threads", type=int, default=2, help="of the trainer")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the trainer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "derivatives.jsonl"
        write_derivatives(data)
        words = options(asked.model, data, asked.steps, asked.threads, asked.dtype)
        command = [sys.executable, "-m", "r1fast.train", *words, "--run", f"{folder}/run"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        found = shares(read_metrics(f"{folder}/run"))
    print(f"rewards add {found['added']:.2%} to a step (the first: {found['first_added']:.2%}): {found['medians']}")
    figure = Figure("rewards over the step without them", found["added"], LIMIT)
    record = {"bench": "rewards_share", **describe("cpu"), "recipe": "smollm2-zero"}
    record |= {"threads": asked.threads, "dtype": asked.dtype} | rounded(found) | {"figures": [figure.record()]}
    write(asked.json, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
