"""The main job in a process that kills itself (SIGKILL) at a chosen moment of its writing.

    python tests/dying.py MOMENT PATTERN COUNT WORDS...
    torchrun ... tests/dying.py MOMENT PATTERN COUNT WORDS...

WORDS are those of `python -m r1fast.train`. PATTERN (as of a shell) is matched with paths, the COUNT-th match counts:

    before    just before a file or directory takes its name, everything of it is written
    half      the same, with half of its bytes written (a file)
    after     just after it has its name
    torn      in the middle of appending to it (metrics.jsonl, samples.jsonl)
    inside    in the middle of writing a model's directory: weights there, tokenizer not
    never     to run without being killed, the same way
    faults    PATTERN is a JSON list of `[phase, rank, "die" or "hang"]`, one for each start that torchrun makes: at its
              COUNT-th sign of progress in that phase the rank is killed, or sleeps

`DYING=launcher` kills the parent instead: torchrun, whose death takes the workers along.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn


def die() -> NoReturn:
    """End as nothing can prevent."""
    os.kill(os.getppid() if os.environ.get("DYING") == "launcher" else os.getpid(), signal.SIGKILL)
    time.sleep(60)
    raise AssertionError("still alive a minute after the launcher was killed")


class Moment:
    """Counts the paths that match and says when it is time."""

    def __init__(self, pattern: str, count: int) -> None:
        self.pattern, self.left = pattern, count

    def has_come(self, path: object) -> bool:
        self.left -= fnmatch(str(path), self.pattern)
        return self.left == 0


def die_at_rename(moment: Moment, how: str) -> None:
    """Every file and directory that must be whole takes its name by `os.replace`."""
    replace: Callable[[Any, Any], None] = os.replace

    def replacing(source: Any, target: Any) -> None:
        if not moment.has_come(target):
            return replace(source, target)
        if how == "half":
            os.truncate(source, os.path.getsize(source) // 2)
        if how == "after":
            replace(source, target)
        die()

    os.replace = replacing  # type: ignore[assignment]


def die_at_append(moment: Moment) -> None:
    """The files that grow are appended to by these two methods alone."""
    from r1fast.context import RunContext
    from r1fast.metrics import METRICS_FILE, MetricsLog

    def tearing(method: Callable[..., None], path_of: Callable[..., Path]) -> Callable[..., None]:
        def torn(self: Any, stage: str, *arguments: Any) -> None:
            method(self, stage, *arguments)
            path = path_of(self, stage)
            if moment.has_come(path):
                os.truncate(path, path.stat().st_size - 10)
                die()

        return torn

    MetricsLog.log = tearing(MetricsLog.log, lambda self, stage: self._dir / METRICS_FILE)  # type: ignore[method-assign]
    RunContext.write_samples = tearing(  # type: ignore[method-assign]
        RunContext.write_samples, lambda self, stage: self.directory(stage) / "samples.jsonl"
    )


def die_in_model(moment: Moment) -> None:
    """Weights and configuration are written first, then the tokenizer."""
    from transformers import PreTrainedModel

    save: Any = PreTrainedModel.save_pretrained

    def saving(self: Any, directory: Any, *arguments: Any, **options: Any) -> None:
        save(self, directory, *arguments, **options)
        if moment.has_come(directory):
            die()

    PreTrainedModel.save_pretrained = saving  # type: ignore[method-assign]


def fail_in_phase(plan: str, count: int) -> None:
    """What this start of torchrun's has planned for this rank."""
    from r1fast.pulse import Pulse

    start, faults = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), json.loads(plan)
    if start >= len(faults) or faults[start][1] != int(os.environ["RANK"]):
        return
    phase, _, what = faults[start]
    beat, left = Pulse.beat, [count]

    def beating(self: Pulse, doing: str = "") -> None:
        beat(self, doing)
        left[0] -= self.phase == phase
        if left[0] == 0:
            print(f"dying: rank {faults[start][1]} in {phase}: {what}", file=sys.stderr, flush=True)
            if what == "hang":
                time.sleep(3600)
            die()

    Pulse.beat = beating  # type: ignore[method-assign]


def run(how: str, pattern: str, count: int, words: list[str]) -> int:
    """The main job with one moment to die at."""
    moment = Moment(pattern, count)
    if how == "torn":
        die_at_append(moment)
    elif how == "inside":
        die_in_model(moment)
    elif how in ("before", "half", "after"):
        die_at_rename(moment, how)
    elif how == "faults":
        fail_in_phase(pattern, count)
    elif how != "never":
        raise ValueError(f"moment {how!r} is none of before, half, after, torn, inside, faults, never")
    from r1fast.train import main

    return main(words)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(run(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
