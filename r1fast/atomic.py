"""Files and directories that are whole or not there, at whatever moment a process dies.

Each is written under a name of its own (`NAME.partial`), brought to the disk, and then takes its name in one step.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_file(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write, UTF-8 unless `mode` has a b. It replaces `path` at the end; an error leaves `path` as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """An empty directory to fill. It replaces `path`, whatever that holds, at the end; an error leaves that as it was.

    A directory cannot be replaced in one step where one is there already: it steps aside (`NAME.old`) just before.
    """
    partial, old = (path.with_name(f"{path.name}.{end}") for end in ("partial", "old"))
    for left in (partial, old):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for folder, _, names in os.walk(partial):
            for name in names:
                with open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file.fileno())
            sync_directory(Path(folder))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if path.exists():
        path.replace(old)
    partial.replace(path)
    sync_directory(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk: without it a crash of the machine can undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that is appended to; a last one without its end was torn by a kill and is left out."""
    *lines, _torn = path.read_bytes().split(b"\n")
    return [line.decode("utf-8") for line in lines]
