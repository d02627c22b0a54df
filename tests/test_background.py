"""A write behind the main thread: what it is given, what it raises and when; copies that nobody changes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from r1fast.background import BackgroundWriter, snapshot, state_bytes
from r1fast.stop import Stopped


def failing() -> None:
    raise OSError("disk full")


def test_one_write_at_a_time_and_none_is_lost() -> None:
    writer, gate, done = BackgroundWriter(), threading.Event(), list[int]()
    writer.wait()  # nothing was begun

    def first() -> None:
        gate.wait(timeout=10)
        done.append(1)

    writer.start(first)
    assert done == []
    gate.set()
    writer.start(lambda: done.append(2))
    writer.wait()
    assert done == [1, 2]


def test_an_error_is_raised_once_by_whoever_waits_first() -> None:
    writer, done = BackgroundWriter(), list[int]()
    writer.start(failing)
    with pytest.raises(OSError, match="disk full"):
        writer.start(lambda: done.append(1))  # which does not begin
    writer.wait()
    assert done == []


def test_the_end_waits_and_raises_what_the_write_raised() -> None:
    writer, gate, done = BackgroundWriter(), threading.Event(), list[int]()
    with writer.finishing():
        writer.start(lambda: (gate.wait(timeout=10), done.append(1))[1])
        gate.set()
    assert done == [1]
    with pytest.raises(OSError, match="disk full"), writer.finishing():
        writer.start(failing)


def test_an_error_of_the_work_stays_and_names_the_unsaved_state() -> None:
    writer, done = BackgroundWriter(), list[int]()
    with pytest.raises(ValueError, match="of the work") as found, writer.finishing():
        writer.start(failing)
        raise ValueError("of the work")
    assert "not saved: OSError('disk full')" in found.value.__notes__[0]
    with pytest.raises(ValueError, match="of the work"), writer.finishing():
        writer.start(lambda: done.append(1))
        raise ValueError("of the work")
    assert done == [1]


def test_what_was_only_stopped_fails_with_its_write() -> None:
    writer = BackgroundWriter()
    with pytest.raises(Stopped), writer.finishing():
        raise Stopped
    with pytest.raises(OSError, match="disk full"), writer.finishing():
        writer.start(failing)
        raise Stopped


def test_a_process_that_does_not_wait_ends_after_its_write(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, time\nfrom r1fast.background import BackgroundWriter\n"
        "BackgroundWriter().start(lambda: (time.sleep(0.5), pathlib.Path(sys.argv[1]).write_text('whole')))"
    )
    path = tmp_path / "file"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=120)
    assert path.read_text() == "whole"


def test_a_snapshot_is_a_copy_of_tensors_in_any_nesting() -> None:
    weights = torch.arange(4.0, requires_grad=True)
    state = {"step": 3, "all": [weights, (torch.ones(2, dtype=torch.bfloat16),)], "named": OrderedDict(a=weights[:2])}
    copied = snapshot(state)
    with torch.no_grad():
        weights.zero_()
        state["all"][1][0].zero_()  # type: ignore[index]
    assert copied["step"] == 3 and isinstance(copied["all"][1], tuple)
    assert copied["all"][0].tolist() == [0.0, 1.0, 2.0, 3.0] and not copied["all"][0].requires_grad
    assert copied["all"][1][0].tolist() == [1.0, 1.0] and copied["named"]["a"].tolist() == [0.0, 1.0]


def test_shared_memory_is_copied_and_counted_once() -> None:
    tied = torch.zeros(10)
    state = {"embedding": tied, "head": tied.detach(), "other": [torch.zeros(3, dtype=torch.int64)]}
    copied = snapshot(state)
    assert copied["embedding"] is copied["head"] and copied["embedding"].data_ptr() != tied.data_ptr()
    assert state_bytes(state) == 40 + 24 and state_bytes({"step": 3}) == 0


@pytest.mark.gpu
def test_a_snapshot_of_the_gpu_lies_page_locked_on_the_host() -> None:
    weights = torch.arange(1 << 20, device="cuda", dtype=torch.float32)
    copied = snapshot({"weights": weights})["weights"]
    weights.zero_()
    assert copied.device.type == "cpu" and copied.is_pinned() and torch.equal(copied, torch.arange(1 << 20).float())
