"""A process that does work when it is asked to, over pipes: what it takes of time and memory is its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
ANSWER_S = 1800.0
END_S = 30.0
QUIET_S, QUIET_SHARE, SETTLE_S = 0.2, 0.1, 5.0


class Worker:
    """`command` is started at once; `wait()` waits for its first line. Raises RuntimeError where it ends by itself."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 closed with the process
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def wait(self) -> dict[str, Any]:
        """Its next line."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], ANSWER_S)[0]:
            raise RuntimeError(f"no answer within {ANSWER_S:.0f} s{self._last_errors()}")
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended with exit code {self.process.wait()}{self._last_errors()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{json.dumps(question)}\n".encode())
        self.process.stdin.flush()
        return self.wait()

    def settle(self) -> None:
        """Wait until it and its children idle: some engines poll for a second after their last answer."""
        end = time.perf_counter() + SETTLE_S
        while time.perf_counter() < end:
            before = self._cpu_s()
            time.sleep(QUIET_S)
            if self._cpu_s() - before < QUIET_SHARE * QUIET_S:
                return

    def peak_bytes(self) -> int | None:
        """The kernel's high-water marks of resident memory, summed over the tree; None where it keeps none."""
        marks = [_high_water(process.pid) for process in self._tree()]
        return None if None in marks else sum(mark or 0 for mark in marks)

    def close(self) -> None:
        """End it: it leaves when its pipe closes; it is killed, with its children, where it does not."""
        tree = self._tree()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        _, alive = psutil.wait_procs(tree, timeout=END_S)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=END_S)
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _cpu_s(self) -> float:
        total = 0.0
        for process in self._tree():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def _last_errors(self) -> str:
        self.errors.seek(max(0, self.errors.seek(0, os.SEEK_END) - 2000))
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def _high_water(pid: int) -> int | None:
    path = Path(f"/proc/{pid}/status")
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), None)
