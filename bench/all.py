"""Kernels, rollouts and the training step, one command: `python -m bench.all --json FILE [--quick] [--only step ...]`.

Each bench runs in a process of its own with a share of the time; what one has measured is in FILE after each of its
cases, also where it is stopped, hangs or dies. On a GPU the kernels take less than ten minutes together, the rollouts
half an hour, the training step a few minutes; on a CPU the kernels share an hour, and the other two take half of one
each. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.command import parser, write

BENCHES = {
    # name: its share of --budget-s
    "linear_grpo": 0.42,
    "linear_logprob": 0.22,
    "token_logprob": 0.22,
    "grpo_loss": 0.07,
    "group_advantage": 0.07,
    "paged_decode": 0.07,
    "sample": 0.07,
    "decode_step": 0.12,
}
WHOLE = {
    # whole processes: seconds of their own, and the options that they take of this command's
    "rollout": (1500.0, ("model", "vllm_python")),
    "step": (1500.0, ("model", "trl_python")),
}
GRACE_S = 25  # what a bench may take beyond its share: the case that is under way, the start
LONG_GRACE_S = 50 * GRACE_S  # on a CPU, and for whole processes


def arguments() -> argparse.Namespace:
    found = parser(__doc__)
    names = [*BENCHES, *WHOLE]
    found.add_argument("--only", nargs="+", default=names, choices=names, help="some of the benches")
    found.add_argument("--model", default="", metavar="DIR", help="of rollouts and training step on a CPU")
    found.add_argument("--vllm-python", default="", metavar="FILE", help="that the rollouts are compared with")
    found.add_argument("--trl-python", default="", metavar="FILE", help="that the training step is compared with")
    found.set_defaults(budget_s=450.0 if torch.cuda.is_available() else 3600.0)
    found.set_defaults(case_s=6.0 if torch.cuda.is_available() else 60.0)
    return found.parse_args()


def run(name: str, options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """One bench: its record, with how it ended where that was not well."""
    whole = name in WHOLE
    budget_s, own_options = WHOLE.get(name, (0.0, ()))
    if not whole:
        budget_s = options.budget_s * BENCHES[name] / sum(BENCHES.get(other, 0.0) for other in options.only)
    command = [sys.executable, "-m", f"bench.bench_{name}", "--json", str(path), "--budget-s", f"{budget_s:.0f}"]
    command += ["--case-s", str(options.case_s), "--kinds", *options.kinds, "--threads", *map(str, options.threads)]
    command += [f"--{flag}" for flag in ("quick", "tiny") if getattr(options, flag)]
    command += ["--list", options.list] if options.list else []
    command += ["--no-line", *(["--no-memory"] if options.no_memory else [])]
    command += ["--rounds", str(options.rounds)] if options.rounds else []
    for flag in own_options:
        value = getattr(options, flag)
        command += [f"--{flag.replace('_', '-')}", value] if value else []
    limit_s = budget_s + (GRACE_S if torch.cuda.is_available() and not whole else LONG_GRACE_S)
    root = Path(__file__).resolve().parent.parent
    ended = ""
    try:
        returned = subprocess.run(command, cwd=root, timeout=limit_s, check=False).returncode
        ended = f"exit code {returned}" if returned else ""
    except subprocess.TimeoutExpired:
        ended = f"stopped after {limit_s:.0f} s"
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"bench": name}
    if ended:
        print(f"bench_{name}: {ended}", flush=True)
        record["ended"] = ended
    return record


def main() -> None:
    """Exits with 1 where a bench found a kernel wrong or died."""
    options = arguments()
    start = time.perf_counter()
    record: dict[str, Any] = {"bench": "all", "benches": {}}
    target = options.json or Path(tempfile.gettempdir()) / f"kernels-{os.getpid()}.json"
    for name in options.only:
        own = target.with_suffix(f".{name}.json")  # what there is of it, should this process be killed
        own.unlink(missing_ok=True)
        record["benches"][name] = run(name, options, own)
        record["seconds"] = round(time.perf_counter() - start, 1)
        write(options.json, record)
        own.unlink(missing_ok=True)
    if not options.list:
        print(json.dumps(record), flush=True)
    if any(found.get("wrong") or found.get("ended") for found in record["benches"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
