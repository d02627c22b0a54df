"""Peak memory of a whole process tree, sampled by a light thread.

PSS (proportional set size) counts a page that n processes share as 1/n in each, so that the sum over a tree is the
memory the tree really holds: forked reward workers, which share nearly everything, do not count twice.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import psutil

_ROLLUP = "/proc/{pid}/smaps_rollup"


class PeakMemory:
    """Context manager: `peak_bytes` is the largest sum over the process tree seen so far, at every sample and at exit.

    `root` is the process whose tree is measured: by default this one, or under torchrun its launcher, so that all
    ranks of this machine count. Linux gives PSS; elsewhere the sum of resident sizes stands in (`measure` says which).
    `record`: a file that always holds the peak so far, so that a killed process leaves it to the next one.
    """

    def __init__(self, *, interval_s: float = 2.0, root: int | None = None, record: Path | None = None) -> None:
        if interval_s <= 0:
            raise ValueError(f"interval_s = {interval_s} must be > 0; 2 seconds cost nothing that can be measured")
        self.peak_bytes = 0
        self.measure: Literal["pss", "rss"] = "pss" if Path(_ROLLUP.format(pid="self")).exists() else "rss"
        self._interval_s = interval_s
        self._root = _run_root() if root is None else root
        self._record = record
        if record is not None and record.exists():
            text = record.read_text(encoding="ascii").strip()
            self.peak_bytes = int(text) if text.isdecimal() else 0  # empty where the machine crashed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def sample(self) -> int:
        """Measure now, in bytes; raises the peak where it is higher."""
        now_bytes = sum(process_bytes(pid) for pid in process_tree(self._root))
        if now_bytes > self.peak_bytes:
            self.peak_bytes = now_bytes
            if self._record is not None:
                partial = self._record.with_name(f"{self._record.name}.partial")
                with contextlib.suppress(OSError):  # a full disk: said by who writes more than a figure
                    partial.write_text(f"{now_bytes}\n", encoding="ascii")  # a kill must not leave half a number
                    partial.replace(self._record)
        return now_bytes

    def __enter__(self) -> PeakMemory:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def _watch(self) -> None:
        wait_s = self._interval_s
        while not self._stop.wait(wait_s):
            start = time.perf_counter()
            self.sample()
            # The kernel walks every page table of a process for its PSS: a tree of 100 GB is asked less often.
            wait_s = max(self._interval_s, 50 * (time.perf_counter() - start))


def process_bytes(pid: int) -> int:
    """PSS of one process in bytes; its resident size where PSS cannot be read; 0 when it is gone."""
    try:
        with open(_ROLLUP.format(pid=pid), "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        pass  # another system, a sandboxed child that may not be inspected, or a process that has just ended
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def available_bytes() -> int:
    """Memory that new processes can have without swapping; within a container its limit counts."""
    available = int(psutil.virtual_memory().available)
    groups = Path("/sys/fs/cgroup")
    for limit, used in (  # version 2, version 1
        (groups / "memory.max", groups / "memory.current"),
        (groups / "memory" / "memory.limit_in_bytes", groups / "memory" / "memory.usage_in_bytes"),
    ):
        try:
            available = min(available, int(limit.read_text()) - int(used.read_text()))
        except (OSError, ValueError):  # not this version, or no limit ("max")
            continue
    return available


def process_tree(root: int) -> Iterator[int]:
    """`root` and all its descendants that run now."""
    if not Path(f"/proc/self/task/{os.getpid()}/children").exists():  # not Linux, or a kernel without that option
        yield root
        yield from (child.pid for child in psutil.Process(root).children(recursive=True))
        return
    pending = [root]
    while pending:
        pid = pending.pop()
        yield pid
        try:
            # Asking each thread for its children reads this tree only; psutil would read every process there is.
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    pending.extend(map(int, file.read().split()))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended while we looked


def _run_root() -> int:
    """The launcher under torchrun (it starts every rank of this machine), else this process."""
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else os.getpid()
