"""What saving a state costs the training: `python -m bench.save [--parameters 135] [--threads 2] [--json FILE]`.

A stage's own saving (`r1fast.progress`) of masters and AdamW's moments of a model of so many million parameters, with
and without run.async_save, in turn: seconds for which it stops the stage, for each GB (10^9 bytes) of state; seconds
until the state is whole on the disk; and how much longer steps (products of matrices) take while it is being written.
The first save of each kind is left out; the last state is read again and compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.command import rounded, write
from bench.device import describe
from bench.harness import Figure
from r1fast.background import state_bytes
from r1fast.checkpoint import read_state
from r1fast.context import RunContext
from r1fast.distributed import Ranks
from r1fast.options import parse
from r1fast.progress import Progress
from r1fast.start import open_run

STAGE = "r1_zero"
LIMIT = 1.0  # s a GB
MATRIX = 2048
MOST_STEPS_S = 120.0


def state_of(parameters: int) -> dict[str, Any]:
    """As `Trainer.state_dict`: matrices of SmolLM2's kind, filled so that no page is the kernel's zero page."""
    rows = [(49152, 576)] + [(576, 1536)] * max(1, (parameters - 49152 * 576) // (576 * 1536))
    if parameters < 49152 * 576:
        rows = [(max(1, parameters // 64), 64)]
    masters, first, second = ([torch.full(shape, value) for shape in rows] for value in (0.5, 0.25, 0.125))
    moments = {number: {"exp_avg": a, "exp_avg_sq": b} for number, (a, b) in enumerate(zip(first, second, strict=True))}
    return {"trainer": {"masters": masters, "optimizer": {"state": moments}}}


def work(left: torch.Tensor, right: torch.Tensor) -> float:
    """Seconds of what stands for a step."""
    start = time.perf_counter()
    torch.mm(left, right)
    return time.perf_counter() - start


def save(progress: Progress, context: RunContext, step: int, state: dict[str, Any]) -> dict[str, float]:
    """Save once, and work until it is whole."""
    left, right = torch.randn(MATRIX, MATRIX), torch.randn(MATRIX, MATRIX)
    work(left, right)
    alone = statistics.median(work(left, right) for _ in range(9))
    start = time.perf_counter()
    progress.step_done(step, lambda: state)
    blocked_s, beside = progress.take_save_s(), []
    while context.writer.busy and time.perf_counter() - start < MOST_STEPS_S:
        beside.append(work(left, right))
    context.writer.wait()
    whole_s = time.perf_counter() - start
    slower = statistics.median(beside) / alone if beside else 1.0
    return {"blocked_s": blocked_s, "whole_s": whole_s, "steps_slower": slower}


def measure(parameters: int, repeats: int) -> dict[str, Any]:
    """Medians of each kind."""
    state = state_of(parameters)
    gigabytes = state_bytes(state) / 1e9
    found: dict[str, list[dict[str, float]]] = {"on": [], "off": []}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        config = parse(["--recipe", "smoke", "--run.tensorboard", "false", "--run.save_every_steps", "1"]).config
        with open_run(config, Path(folder), Ranks()) as context:
            step = 0
            for _ in range(repeats + 1):
                for kind, rows in found.items():
                    own = replace(context, config=replace(config, run=replace(config.run, async_save=kind)))
                    step += 1
                    rows.append(save(Progress(own, STAGE), own, step, state))
            newest = context.state_folder(STAGE).newest()
            assert newest is not None and newest[0] == step, newest
            again = read_state(newest[1])["trainer"]["masters"]
            assert all(torch.equal(x, y) for x, y in zip(again, state["trainer"]["masters"], strict=True))
    medians = {
        kind: {name: statistics.median(row[name] for row in rows[1:]) for name in rows[0]}
        for kind, rows in found.items()
    }
    for row in medians.values():
        row["blocked_s_per_gb"] = row["blocked_s"] / gigabytes
        row["whole_s_per_gb"] = row["whole_s"] / gigabytes
    return {"state_gb": gigabytes, "rows": medians}


def main() -> None:
    """Print both kinds and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=135, help="of the model, in millions")
    parser.add_argument("--repeats", type=int, default=3, help="of each kind; the median counts")
    parser.add_argument("--threads", type=int, default=2, help="of the work beside it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(options.parameters * 1_000_000, options.repeats)
    for kind, row in found["rows"].items():
        print(
            f"async_save {kind:<4} stops the stage for {row['blocked_s_per_gb']:.2f} s a GB; whole after "
            f"{row['whole_s_per_gb']:.2f} s a GB; steps beside it take {row['steps_slower']:.2f} times as long",
            flush=True,
        )
    limit = Figure("seconds for which a GB of state stops the stage", found["rows"]["on"]["blocked_s_per_gb"], LIMIT)
    record = {"bench": "save", **describe("cpu"), "repeats": options.repeats, "threads": options.threads}
    record |= rounded(found) | {"figures": [limit.record()]}
    write(options.json, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
