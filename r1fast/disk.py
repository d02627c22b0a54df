"""Space for a run: what it will write, what is free, and whether an error means that the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from r1fast.checks import STUDENT_STAGES, keeps_best
from r1fast.config import Config, ConfigError

# Stage -> the checkpoints that it leaves. The others write text only.
NUM_CHECKPOINTS = {
    "r1_zero": 1,
    "sft_1": 1,
    "rl_1": 1,
    "sft_2": 1,
    "reward_models": 2,
    "rl_2": 1,
    "distill": 1,
    "student_rl": 1,
}
STATE_BYTES = 4 * 3 + 4  # per parameter: fp32 master, AdamW's two moments; the reference, in fp32 at most
TEXT_BYTES = 16 << 20  # metrics, samples, examples, TensorBoard: a margin, not a bound
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def run_bytes(
    config: Config,
    stages: Collection[str],
    *,
    num_params: int,
    student_params: int,
    compute_bytes: int,
    adapters: Mapping[str, int] | None = None,
) -> int:
    """Bytes that these stages of a run still write: their checkpoints, the largest state of one stage, text.

    `adapters`: numbers of those that a stage trains, in place of all parameters.
    """
    checkpoints = states = 0
    for stage in stages:
        params = student_params if stage in STUDENT_STAGES else num_params
        if stage in NUM_CHECKPOINTS:
            written_bytes = 4 if stage == "reward_models" else compute_bytes  # they are trained in float32
            checkpoints += NUM_CHECKPOINTS[stage] * params * written_bytes
            trained = (adapters or {}).get(stage, params)
            checkpoints += trained * compute_bytes if trained != params else 0
            if keeps_best(config, stage):
                checkpoints += params * compute_bytes
            states = max(states, trained * STATE_BYTES)
    if config.run.save_every_steps:
        states *= config.run.keep_states + 1  # those that are kept, and the next being written
    return checkpoints + states + TEXT_BYTES


def saved_bytes(run_dir: Path) -> int:
    """Bytes of the states that a run has saved, whole or not: those to come replace them, or their stage's end."""
    found = 0
    for path in run_dir.glob("stages/*/state/*"):
        with contextlib.suppress(FileNotFoundError):  # a run that is just ending drops them
            found += path.stat().st_size
    return found


def existing_parent(path: Path) -> Path:
    """The directory itself, or the nearest one above it that exists."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def check_directory(run_dir: Path, need_bytes: int) -> int:
    """Bytes free where a run would write `need_bytes`, some of them over states that it has saved; writes nothing.

    Raises:
        ConfigError: it is a file, may not be written to, or has too little space.
    """
    place = existing_parent(run_dir)
    if not place.is_dir():
        raise ConfigError(f"run directory {run_dir}: {place} is a file; choose another with --run.dir DIR")
    if not os.access(place, os.W_OK | os.X_OK):
        why = "is on a read-only file system" if _is_read_only(place) else "may not be written to by this user"
        raise ConfigError(f"run directory {run_dir}: {place} {why}; choose another with --run.dir DIR")
    free_bytes = shutil.disk_usage(place).free
    need_bytes -= saved_bytes(run_dir)
    if free_bytes < need_bytes:
        raise ConfigError(
            f"run directory {run_dir}: {format_bytes(free_bytes)} are free there, this run writes about "
            f"{format_bytes(need_bytes)} (checkpoints, state for resume, metrics); free some space, or choose another "
            "disk with --run.dir DIR"
        )
    return free_bytes


def is_disk_full(error: BaseException, run_dir: Path) -> bool:
    """Whether an error, or one that it came from, says that the disk (or the quota) is full.

    Libraries that write through C++ or Rust keep the reason in their text only, or lose it: torch's writer says
    "unexpected pos"; then the disk itself is asked.
    """
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        if "No space left on device" in str(cause) or "Disk quota exceeded" in str(cause):
            return True
        if isinstance(cause, RuntimeError) and ("PytorchStreamWriter" in str(cause) or "unexpected pos" in str(cause)):
            return shutil.disk_usage(existing_parent(run_dir)).free < TEXT_BYTES
    return False


def format_bytes(num_bytes: float) -> str:
    """`3.20 GiB`, `512 MiB`, `40 KiB`."""
    if num_bytes >= 1 << 30:
        return f"{num_bytes / 2**30:,.2f} GiB"
    return f"{num_bytes / 2**20:,.0f} MiB" if num_bytes >= 1 << 20 else f"{num_bytes / 2**10:,.0f} KiB"


def _is_read_only(place: Path) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        cause = pending.pop()
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            pending += [cause.__cause__, cause.__context__]
