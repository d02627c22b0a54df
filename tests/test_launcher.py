"""A worker does not outlive its launcher, not even one that is killed while the worker holds SIGTERM back."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r1fast import launcher
from r1fast.launcher import die_with_launcher

linux = pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG is Linux's")

CHILD = """
import signal, time
from r1fast.launcher import die_with_launcher
signal.signal(signal.SIGTERM, signal.SIG_IGN)
die_with_launcher()
print('up', flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys, time
environment = os.environ | {{"TORCHELASTIC_RUN_ID": "none"}}
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, env=environment)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


@linux
def test_a_worker_dies_with_its_killed_launcher() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert _alive(worker)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while _alive(worker):
        assert time.monotonic() < deadline, f"worker {worker} outlived its launcher"
        time.sleep(0.02)


ORPHAN = """
import os, signal
from r1fast import launcher
parents = iter([41, 1])
launcher.os.getppid = lambda: next(parents)
launcher.die_with_parent()
print("alive")
"""


@linux
def test_a_worker_whose_launcher_is_gone_already_does_not_start() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_without_a_launcher_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    asked: list[bool] = []
    monkeypatch.setattr(launcher, "die_with_parent", lambda: asked.append(True))
    die_with_launcher()
    assert asked == []
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    die_with_launcher()
    assert asked == [True]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
