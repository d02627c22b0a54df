"""What a run leaves behind, for comparing a run that was killed with one that was not; and how to kill it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiny_run import without_times

from r1fast.metrics import METRICS_FILE, read_metrics

ROOT = Path(__file__).parents[1]
DYING = Path(__file__).with_name("dying.py")
# Times, memory and versions may differ between two runs.
FREE = frozenset({"wall_s", "peak_pss_bytes", "versions"})
# What says something of the processes, what shows times, and what is compared in another way.
FREE_FILES = frozenset({".peak_pss_bytes", "config.toml", "report.html", METRICS_FILE})
FREE_STARTS = (".lock", "faults/", "tensorboard/")
# The kernel has this long to end the workers of a killed launcher: far more than it needs on a busy machine.
LAST_WORKER_S = 20.0


def left_behind(run_dir: Path) -> dict[str, Any]:
    """Everything that must be the same, by name: the metrics, and the values, lines or bytes of all other files."""
    found: dict[str, Any] = {"metrics": without_times(read_metrics(run_dir))}
    for path in sorted(run_dir.rglob("*")):
        name = str(path.relative_to(run_dir))
        if path.is_dir() or name in FREE_FILES or name.startswith(FREE_STARTS):
            continue
        if path.suffix == ".json":
            found[name] = without_free(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".jsonl":
            found[name] = path.read_text(encoding="utf-8").splitlines()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def without_free(value: Any) -> Any:
    """A JSON value without what may differ."""
    if isinstance(value, dict):
        return {key: without_free(item) for key, item in value.items() if key not in FREE}
    return value


def events(run_dir: Path) -> dict[str, Any]:
    """What TensorBoard shows: stage -> tag -> (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown: dict[str, Any] = {}
    for directory in sorted((run_dir / "tensorboard").iterdir()):
        accumulator = EventAccumulator(str(directory), size_guidance={"scalars": 0})
        accumulator.Reload()
        tags = [tag for tag in accumulator.Tags()["scalars"] if not tag.startswith("time/")]
        shown[directory.name] = {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in tags}
    return shown


def num_logged(run_dir: Path) -> int:
    """Whole lines of metrics.jsonl so far."""
    path = run_dir / METRICS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


@dataclass(frozen=True)
class Moment:
    """When to kill: as `dying.py` understands it; or, with `lines`, `delay_s` after so many more have been logged.

    `environment`: for dying.py. `signal`: with `lines`, what to send to the process that was started.
    """

    name: str
    how: str = "never"
    pattern: str = ""
    count: int = 1
    lines: int | None = None
    delay_s: float = 0.0
    signal: int = signal.SIGKILL
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """A launch that has ended: exit code (negative: the signal), output, seconds that workers lived on without it."""

    code: int
    output: str
    lived_on_s: float


def launch(command: Sequence[str], words: Sequence[str], run_dir: Path, moment: Moment, log: Path) -> Ended:
    """Start `command` (Python, perhaps torchrun) on dying.py and wait for its end, which `moment` may bring about."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **moment.environment}
    dying = [str(DYING), moment.how, moment.pattern, str(moment.count)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *dying, *words, "--run.dir", str(run_dir)],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if moment.lines is not None:
                _kill_when_logged(process, run_dir, moment.lines, moment)
            code = process.wait(timeout=1800)
        finally:
            process.kill()
            process.wait()
    lived_on_s = wait_for_workers(run_dir)
    return Ended(code, log.read_text(encoding="utf-8", errors="replace"), lived_on_s)


def _kill_when_logged(process: subprocess.Popen[bytes], run_dir: Path, lines: int, moment: Moment) -> None:
    lowest = num_logged(run_dir)
    while num_logged(run_dir) < lowest + lines:
        if process.poll() is not None:
            return
        lowest = min(lowest, num_logged(run_dir))  # a resumed stage forgets the lines that come again
        time.sleep(0.02)
    time.sleep(moment.delay_s)
    process.send_signal(moment.signal)


def wait_for_workers(run_dir: Path) -> float:
    """Seconds until the last process of the run has ended; fails when that takes more than a few."""
    start = time.monotonic()
    while left := holders(run_dir):
        assert time.monotonic() - start < LAST_WORKER_S, f"processes {left} outlived their launcher"
        time.sleep(0.01)
    return time.monotonic() - start


def holders(run_dir: Path) -> list[int]:
    """Processes that were started with this run's directory and still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
            state = (path.parent / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if str(run_dir) in words and state != "Z":
            found.append(int(path.parent.name))
    return found
