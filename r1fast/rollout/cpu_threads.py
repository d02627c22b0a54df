"""How many CPU threads generate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_threads(wanted: int) -> Iterator[None]:
    """PyTorch's threads, and with them the extension's, are `wanted` inside, at most this process's share of the cores.

    The share: the cores that the process may use over the processes that a launcher has started on the machine.
    0 leaves them as they are.
    """
    if not wanted:
        yield
        return
    before = torch.get_num_threads()
    share = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(wanted, share // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))
    try:
        yield
    finally:
        torch.set_num_threads(before)
