"""A run's directory, read from outside: its configuration, where a stage's files are, who writes to it now."""

from __future__ import annotations

import fcntl
from pathlib import Path

from r1fast.config import STAGES, Config, ConfigError
from r1fast.options import read_config


def stage_directory(run_dir: Path, stage: str) -> Path:
    """`stages/NN-NAME`, numbered by the order in which R1 runs them."""
    return run_dir / "stages" / f"{list(STAGES).index(stage):02d}-{stage}"


def unfinished_stages(config: Config, run_dir: Path) -> tuple[str, ...]:
    """The stages of the pipeline without a result, in order."""
    return tuple(s for s in config.pipeline.stages if not (stage_directory(run_dir, s) / "result.json").exists())


def open_config(run_dir: Path) -> Config:
    """The configuration that a run has written.

    Raises:
        ConfigError: there is no run; the message names those nearby.
    """
    path = run_dir / "config.toml"
    if not path.exists():
        beside = sorted(str(file.parent) for file in run_dir.parent.glob("*/config.toml"))[:5]
        hint = f"; runs beside it: {', '.join(beside)}" if beside else "; give a run's directory, for example runs/tiny"
        raise ConfigError(f"{run_dir} is no run: it has no config.toml{hint}")
    return read_config(path)


def lock_holder(run_dir: Path) -> str | None:
    """The process id of the run that writes there now, as text; None when nobody does. Changes nothing."""
    try:
        file = (run_dir / ".lock").open(encoding="utf-8")
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "unknown"
    return None
