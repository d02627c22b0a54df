"""The watchdog: what it does when a phase stands still, in one process, and between two that are real."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hanging import limits

from r1fast.distributed import Ranks
from r1fast.faults_config import FaultsConfig
from r1fast.stop import StopRequest
from r1fast.watchdog import Watchdog

ROOT = Path(__file__).parents[1]
LONG = limits(1000.0)  # its thread looks every 5 s: the tests look themselves


class Left(Exception):
    """The process would have ended."""


def leave(code: int) -> None:
    raise Left(code)


def test_a_phase_that_stands_still_ends_the_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = Ranks()
    watchdog = Watchdog(ranks, LONG, tmp_path, stage=lambda: "rl_1", leave=leave)
    with watchdog, ranks.pulse.during("rollout"):
        for _ in range(3):
            ranks.pulse.beat("decode steps")
            watchdog.look(600.0)
            watchdog.look(600.0)
        saved: list[bool] = []
        ranks.pulse.safe.offer("rl_1 after step 3", lambda: saved.append(True))
        with pytest.raises(Left, match="1"):
            watchdog.look(600.0)
    said = capsys.readouterr().err
    assert "watchdog: rank 0" in said and "phase rollout, made no progress for 1200 s (last progress: decode st" in said
    assert "watchdog: saved rl_1 after step 3" in said and saved == [True]
    failure = json.loads((tmp_path / "failure.json").read_text())
    assert failure["stage"] == "rl_1" and failure["error"].startswith("Stuck: rank 0")
    stacks = (tmp_path / "faults" / "rank-0.txt").read_text()
    assert "made no progress" in stacks and "test_a_phase_that_stands_still_ends_the_process" in stacks


def test_every_phase_has_its_own_limit(tmp_path: Path) -> None:
    ranks = Ranks()
    with Watchdog(ranks, replace(LONG, rollout_s=0.0, save_s=3000.0), tmp_path, leave=leave) as watchdog:
        with ranks.pulse.during("rollout"):
            for _ in range(10):
                watchdog.look(1e6)
        with ranks.pulse.during("save"):
            watchdog.look(0.0)
            watchdog.look(2999.0)
            with pytest.raises(Left):
                watchdog.look(2.0)


def test_a_save_that_fails_still_ends_the_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = Ranks()

    def save() -> None:
        raise OSError(28, "No space left on device")

    with Watchdog(ranks, LONG, tmp_path, leave=leave) as watchdog:
        ranks.pulse.safe.offer("rl_1 after step 3", save)
        watchdog.look(0.0)
        with pytest.raises(Left):
            watchdog.look(1001.0)
    assert "rl_1 after step 3 could not be saved (OSError" in capsys.readouterr().err


def test_what_is_done_is_saved_at_once_on_sigterm(tmp_path: Path) -> None:
    ranks, stop, saved = Ranks(), StopRequest(), []
    with Watchdog(ranks, LONG, tmp_path, stop=stop, leave=leave) as watchdog:
        ranks.pulse.safe.offer("rl_1 after step 3", lambda: saved.append(3))
        watchdog.look(0.0)
        assert saved == []
        stop.requested = True
        watchdog.look(0.0)
        watchdog.look(0.0)
    assert saved == [3]


def test_nothing_is_left_behind_by_a_healthy_run(tmp_path: Path) -> None:
    ranks = Ranks()
    with Watchdog(ranks, limits(2.0), tmp_path, leave=leave):
        for _ in range(10):
            time.sleep(0.05)
            ranks.pulse.beat("decode steps")
    assert list(tmp_path.iterdir()) == []


def test_without_limits_there_is_no_watchdog(tmp_path: Path) -> None:
    off = FaultsConfig(**dict.fromkeys(vars(FaultsConfig()), 0.0) | {"spike": "off", "spike_factor": 2.0})  # type: ignore[arg-type]
    with Watchdog(Ranks(), off, tmp_path):
        assert not (tmp_path / "faults").exists()


def test_clocks_that_jump_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the wall clock nor a suspended process (the monotonic clock runs on) is mistaken for a hang."""
    ranks, jumps = Ranks(), iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1e9 + (-1) ** next(jumps) * 86400.0 * next(jumps))
    started, suspended_s = time.monotonic, [0.0]
    real = started
    monkeypatch.setattr(time, "monotonic", lambda: real() + suspended_s[0])
    with Watchdog(ranks, limits(4.0), tmp_path, leave=leave), ranks.pulse.during("rollout"):
        end = real() + 2.0
        while real() < end:
            time.sleep(0.5)  # the watchdog looks two or three times meanwhile, and sees no beat
            suspended_s[0] += 100.0
            ranks.pulse.beat("decode steps")
    assert list(tmp_path.iterdir()) == []


def launch(directory: Path, limit_s: float, what: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "TORCHELASTIC_RUN_ID": "as torchrun sets it",
    }
    command = [sys.executable, str(ROOT / "tests" / "hanging.py"), str(directory), str(limit_s), what]
    return [
        subprocess.Popen(
            command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]


def run(directory: Path, limit_s: float, what: str) -> tuple[list[int], list[str]]:
    """Exit codes and messages of both; one that was stopped is killed when the other has ended."""
    workers = launch(directory, limit_s, what)
    try:
        said = [workers[0].communicate(timeout=300)[1]]
        if what == "stopped":
            workers[1].send_signal(signal.SIGKILL)
        said.append(workers[1].communicate(timeout=300)[1])
        return [worker.returncode for worker in workers], said
    finally:
        for worker in workers:
            worker.kill()


def stacks(directory: Path) -> list[str]:
    paths = [directory / "faults" / f"rank-{rank}.txt" for rank in range(2)]
    return [path.read_text() if path.exists() else "" for path in paths]


def test_a_stuck_rank_takes_both_down_with_both_stacks(tmp_path: Path) -> None:
    codes, said = run(tmp_path, 4.0, "stuck")
    assert codes == [1, 1], said
    both = "".join(said)
    assert "rank 1" in both and "phase rollout, made no progress for" in both
    assert "limit faults.rollout_s = 4" in both and "last collective gather_objects #" in both
    first, second = stacks(tmp_path)
    assert "all_gather_object" in first and "in misbehave" in second
    assert (tmp_path / "saved").exists() and "watchdog: saved step 7" in said[0]
    assert "rank 1" in json.loads((tmp_path / "failure.json").read_text())["error"]


def test_a_slow_rank_is_named_and_waited_for(tmp_path: Path) -> None:
    codes, said = run(tmp_path, 6.0, "slow")
    assert codes == [0, 0], said
    assert "warning: rank 0 has waited 3 s in gather_objects #" in said[0]
    assert "for rank 1 (rollout: decode steps" in said[0] and "slow, but it goes on" in said[0]
    assert not (tmp_path / "failure.json").exists() and not (tmp_path / "faults").exists()


@pytest.mark.slow
def test_a_rank_that_holds_pythons_lock_is_ended_by_the_timer(tmp_path: Path) -> None:
    codes, said = run(tmp_path, 6.0, "locked")
    assert codes == [1, 1], said
    assert "missing: rank 1 (rollout: decode steps" in said[0] and "silent for" in said[0]
    first, second = stacks(tmp_path)
    assert "all_gather_object" in first
    assert "Timeout (0:00:06" in second and "in misbehave" in second


@pytest.mark.slow
def test_a_stopped_rank_is_missing(tmp_path: Path) -> None:
    codes, said = run(tmp_path, 6.0, "stopped")
    assert codes == [1, -signal.SIGKILL], said
    assert "missing: rank 1 (rollout: decode steps" in said[0] and "silent for" in said[0]
    assert "limit faults.training_s = 6" in said[0]


@pytest.mark.slow
def test_ranks_that_wait_for_each_other_are_told(tmp_path: Path) -> None:
    codes, said = run(tmp_path, 4.0, "both")
    assert codes == [1, 1], said
    assert "rank 1 waits in ZeRO step" in said[0] or "rank 0 waits in gather_objects" in said[1]
