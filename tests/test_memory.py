from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from r1fast.memory import PeakMemory, process_bytes, process_tree

MIB = 1 << 20
linux = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's smaps_rollup")


def child(code: str) -> subprocess.Popen[bytes]:
    """A Python child that runs `code`, says so, and waits for its input to close."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"import os, sys\n{code}\nos.write(1, b'.')\nsys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(1) == b"."
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.communicate()


def test_counts_a_child() -> None:
    with PeakMemory(interval_s=60) as peak:
        before = peak.sample()
        process = child("held = bytearray(64 << 20)\nheld[::4096] = b'x' * len(held[::4096])")
        during = peak.sample()
        end(process)
        after = peak.sample()
    assert 64 * MIB <= during - before < 160 * MIB
    assert after < during - 48 * MIB
    assert peak.peak_bytes >= during


@linux
def test_memory_shared_with_a_fork_counts_once() -> None:
    code = (
        "held = bytearray(64 << 20)\nheld[::4096] = b'x' * len(held[::4096])\n"
        "pid = os.fork()\n"
        "if pid == 0:\n    sys.stdin.read(); os._exit(0)"
    )
    process = child(code)
    tree = list(process_tree(process.pid))
    total = sum(map(process_bytes, tree))
    end(process)
    assert len(tree) == 2
    assert 64 * MIB <= total < 112 * MIB


def test_samples_on_its_own_and_stops() -> None:
    threads = threading.active_count()
    with PeakMemory(interval_s=0.01) as peak:
        process = child("held = bytearray(64 << 20)\nheld[::4096] = b'x' * len(held[::4096])")
        deadline = time.monotonic() + 5
        while peak.peak_bytes < 64 * MIB + process_bytes(os.getpid()) and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = peak.peak_bytes
        end(process)
    assert seen >= 64 * MIB + process_bytes(os.getpid()) // 2
    assert threading.active_count() == threads


def test_a_process_that_ended_counts_nothing() -> None:
    process = child("")
    end(process)
    assert process_bytes(process.pid) == 0
    assert list(process_tree(process.pid)) == [process.pid]


@linux
def test_a_process_that_may_not_be_inspected_counts_its_resident_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1fast.memory._ROLLUP", "/proc/{pid}/no-such-file")
    assert process_bytes(os.getpid()) > 8 * MIB


def test_under_torchrun_the_launcher_is_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert os.getpid() in process_tree(PeakMemory()._root)
    assert PeakMemory()._root == os.getppid()


def test_a_record_hands_the_peak_to_the_next_process(tmp_path: Path) -> None:
    record = tmp_path / "peak"
    with PeakMemory(interval_s=60, record=record) as first:
        assert int(record.read_text()) == first.peak_bytes  # there before anything can be killed
    record.write_text(f"{1 << 50}\n")
    with PeakMemory(interval_s=60, record=record) as second:
        assert second.sample() < 1 << 50
    assert second.peak_bytes == 1 << 50 == int(record.read_text())
    record.write_text("")
    with PeakMemory(interval_s=60, record=record) as third:
        assert 0 < third.peak_bytes < 1 << 50


def test_a_full_disk_costs_the_record_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with PeakMemory(record=tmp_path / "peak") as memory:
        pass
    assert memory.peak_bytes > 0 and not (tmp_path / "peak").exists()


def test_refuses_an_interval_that_never_sleeps() -> None:
    with pytest.raises(ValueError, match="interval_s = 0"):
        PeakMemory(interval_s=0)
