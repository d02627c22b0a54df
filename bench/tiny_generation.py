"""What generation and evaluation take of tiny: `python -m bench.tiny_generation [--against CHECKOUT] [--json FILE]`.

Base, R1-Zero and evaluation of the recipe `tiny`, seed 0; the time of a step's rollout, of readings on the dev problems
and of the evaluation, from its metrics. CHECKOUT is another one of this repository, in which the same is run in turn:

    git worktree add --detach /tmp/before dd9e0cb      # the last one without the paged engine
    python -m bench.tiny_generation --against /tmp/before --rounds 2
"""

from __future__ import annotations

import argparse
import json
import os
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

HERE = Path(__file__).parents[1]
STAGES = "base,r1_zero,evaluation"
COMMAND = ["-m", "r1fast.train", "--recipe", "tiny", "--pipeline.stages", STAGES, "--run.tensorboard", "false"]
PARTS = {"rollouts": "time/rollout_s", "dev readings": "time/dev_s", "evaluation": "time/evaluation_s"}
LIMIT = 0.5  # of what it took before


def run(checkout: Path) -> dict[str, float]:
    """Seconds of each part, and of all of them."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        command = [sys.executable, *COMMAND, "--run", folder]
        subprocess.run(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, check=True)
        return seconds(read_metrics(folder))


def seconds(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Of the lines of a run. Raises RuntimeError where a part is not among them."""
    found = {name: sum(line.get(key, 0.0) for line in lines) for name, key in PARTS.items()}
    if missing := [name for name, value in found.items() if not value]:
        raise RuntimeError(f"the run has no {missing[0]} ({PARTS[missing[0]]}): is the recipe another one there?")
    return {**found, "all": sum(found.values())}


def main() -> None:
    """Run the rounds, print every part, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="the one before")
    parser.add_argument("--rounds", type=int, default=1, help="of each, in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    asked = parser.parse_args()
    checkouts = {"now": HERE, **({"before": asked.against.absolute()} if asked.against else {})}
    rounds = [{name: run(checkout) for name, checkout in checkouts.items()} for _ in range(asked.rounds)]
    names = (*PARTS, "all")
    medians = {who: {name: statistics.median(r[who][name] for r in rounds) for name in names} for who in checkouts}
    record = {"bench": "tiny_generation", **describe("cpu"), "rounds": asked.rounds, "seconds": medians}
    if asked.against:
        ratios = {name: statistics.median(r["now"][name] / r["before"][name] for r in rounds) for name in names}
        figure = Figure("generation and evaluation over what they took before", ratios["all"], LIMIT)
        record |= {"ratios": ratios, "figures": [figure.record()]}
        print("now over before: " + ", ".join(f"{name} {value:.3f}" for name, value in ratios.items()))
    for who, values in medians.items():
        print(f"{who}: " + ", ".join(f"{name} {value:.1f} s" for name, value in values.items()))
    write(asked.json, rounded(record))
    print(json.dumps(rounded(record)))


if __name__ == "__main__":
    main()
