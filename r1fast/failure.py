"""What ended a run: `failure.json` in its directory, read by `r1fast doctor RUN`, gone when the run goes on."""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from pathlib import Path
from typing import Any

FAILURE_FILE = "failure.json"


def write_failure(run_dir: Path, stage: str, error: BaseException) -> None:
    """Note when, where and of what a run died. Of several processes the first is right: the others lost their peer."""
    frames = traceback.extract_tb(error.__traceback__)
    record = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "stage": stage,
        "error": f"{type(error).__name__}: {error}",
        "where": f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "",
    }
    # A full disk is a likely reason to be here, and the error itself is on its way to the user.
    with contextlib.suppress(OSError), (run_dir / FAILURE_FILE).open("x", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False, indent=1))


def read_failure(run_dir: Path) -> dict[str, Any] | None:
    """The record of the run's death; None for a run that has left none, or none that is whole."""
    try:
        return dict(json.loads((run_dir / FAILURE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def clear_failure(run_dir: Path) -> None:
    """The run goes on: forget how it ended before."""
    (run_dir / FAILURE_FILE).unlink(missing_ok=True)
