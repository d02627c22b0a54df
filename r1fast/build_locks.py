"""Locks that a killed compilation of a torch extension left behind, for which every later one waits without a word."""

from __future__ import annotations

import os
from pathlib import Path


def abandoned_locks() -> list[Path]:
    """This user's lock files of torch's extensions that no process here holds open, as a living compilation does.

    The folder is TORCH_EXTENSIONS_DIR, or the one in the user's cache. On a home that several machines share the
    holder may be on another one; empty where the system does not tell what processes hold open.
    """
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    locks = sorted({*root.glob("*/lock"), *root.glob("*/*/lock")})  # with and without a folder for each version
    if not locks or not Path("/proc/self/fd").is_dir():
        return []
    held = _open_files()
    return [lock for lock in locks if os.path.realpath(lock) not in held and _is_own(lock)]


def _is_own(lock: Path) -> bool:
    """Of other users' processes one does not see what they hold."""
    try:
        return lock.stat().st_uid == os.getuid()
    except OSError:  # it is released
        return False


def _open_files() -> set[str]:
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found.add(os.readlink(link))
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return found
