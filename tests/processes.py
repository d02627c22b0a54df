"""Processes over gloo for a test: two, of which this one is rank 0, or groups of any size beside it."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from r1fast.launcher import die_with_parent

RankMain = Callable[[int, Path], None]  # rank, a directory for results; it joins and leaves the process group


def run_two(main: RankMain, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `main`, a function of a module, on both; the second has come up before the first begins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment = {"MASTER_PORT": str(free.getsockname()[1]), "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}
    for name, value in (environment | {"RANK": "0", "LOCAL_RANK": "0"}).items():
        monkeypatch.setenv(name, value)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    worker = context.Process(target=_second_rank, args=(there, main, directory))
    worker.start()
    try:
        assert here.poll(timeout=300), "the second process did not come up"
        main(0, directory)
        worker.join(timeout=300)
        assert worker.exitcode == 0
    finally:
        worker.kill()


def _second_rank(ready: Connection, main: RankMain, directory: Path) -> None:
    os.environ |= {"RANK": "1", "LOCAL_RANK": "1"}
    ready.send(True)
    main(1, directory)


def run_groups(jobs: list[tuple[int, RankMain]], directory: Path, *, timeout_s: float = 900) -> None:
    """Run each job's function on its number of processes, joined over gloo, one job after another.

    All of them are forked from one process that has imported the function's module, since importing takes longer than
    most tests. A rank that fails ends its group, and the test.
    """
    parent = multiprocessing.get_context("spawn").Process(target=_fork_groups, args=(jobs, directory, timeout_s))
    parent.start()
    try:
        parent.join(timeout=len(jobs) * timeout_s + 300)
        assert parent.exitcode == 0, f"exit code {parent.exitcode}; the rank's own message is in the captured output"
    finally:
        parent.kill()


def _fork_groups(jobs: list[tuple[int, RankMain]], directory: Path, timeout_s: float) -> None:
    die_with_parent()
    context = multiprocessing.get_context("fork")
    for size, main in jobs:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = {"MASTER_PORT": str(free.getsockname()[1]), "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(size)}
        ranks = [context.Process(target=_rank, args=(rank, address, main, directory)) for rank in range(size)]
        for process in ranks:
            process.start()
        deadline = time.monotonic() + timeout_s
        while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
            if any(process.exitcode for process in ranks):
                break
            time.sleep(0.05)
        codes = [process.exitcode for process in ranks]
        for process in ranks:
            process.kill()
        if codes != [0] * size:
            raise SystemExit(f"{main.__name__} on {size} processes ended with {codes}")


def _rank(rank: int, address: dict[str, str], main: RankMain, directory: Path) -> None:
    die_with_parent()
    os.environ |= address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    main(rank, directory)
