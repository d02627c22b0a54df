"""Processes that die or hang in the middle of a run: torchrun starts all again, and the run is bitwise the other's.

`pytest --slow tests/test_faults.py` (real processes over gloo; the hosts of the last test are network namespaces).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hosts import ADDRESSES, Hosts
from survival import ROOT, Moment, launch, left_behind, num_logged
from test_survival import corrupt, words_of

from r1fast.metrics import read_metrics

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
SHORT = {
    "pipeline.stages": '["r1_zero", "cold_start", "sft_1"]',
    "rl.prompts_per_step": 4,
    "stages.r1_zero.steps": 7,
    "rl.dev_every_steps": 0,
    "cold_start.prompts": 32,
    "sft.batch_size": 8,
    "stages.sft_1.steps": 2,
    "data.num_train": 64,
    "run.save_every_steps": 3,
    "run.samples_per_step": 1,
    "run.tensorboard": "false",
    "run.device": "cpu",
}
HANG_S = 45.0  # far above any single step of a healthy phase, on a busy machine too

CUT_S = 30.0

# One for each start: the phase, the rank, and what happens at its 9th sign of progress there.
FAULTS = [
    ("rollout", 2, "die"),
    ("reward", 1, "die"),
    ("training", 3, "die"),
    ("training", 1, "hang"),
    ("save", 0, "die"),
]


@pytest.mark.slow
def test_one_of_four_ranks_that_dies_or_hangs_in_every_phase(tmp_path: Path) -> None:
    words = words_of({**SHORT, **{f"faults.{phase}_s": HANG_S for phase in ("rollout", "reward", "training")}})
    ranks = [*TORCHRUN, "--nproc_per_node", "4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = launch(ranks, words, whole, Moment("never"), tmp_path / "log")
    assert first.code == 0, first.output
    moment = Moment("all of them", "faults", json.dumps(FAULTS), 9)
    ended = launch([*ranks, "--max-restarts", str(len(FAULTS))], words, killed, moment, tmp_path / "log")
    assert ended.code == 0, ended.output
    for phase, rank, what in FAULTS:
        assert f"dying: rank {rank} in {phase}: {what}" in ended.output
    print(*(line for line in ended.output.splitlines() if "continuing" in line or "saved " in line), sep="\n")
    assert "saved r1_zero after step" in ended.output and "r1_zero: continuing after step" in ended.output
    assert "phase training, made no progress for" in ended.output
    assert left_behind(killed) == left_behind(whole)
    assert len(read_metrics(killed)) == len(read_metrics(whole)) > 9
    stacks = (killed / "faults" / "rank-1.txt").read_text()
    assert "made no progress" in stacks and "in beating" in stacks


@pytest.mark.slow
def test_a_full_disk_and_a_damaged_state_under_two_ranks(small_disk: Callable[[str], Path], tmp_path: Path) -> None:
    """Of a full disk a restart does not help, and it says so; with space again the last whole state is where it was."""
    words = words_of({**SHORT, "pipeline.stages": '["r1_zero"]', "run.save_every_steps": 1})
    disk, ranks = small_disk("size=160m"), [*TORCHRUN, "--nproc_per_node", "2"]
    whole, run_dir = tmp_path / "whole", disk / "run"
    first = launch(ranks, words, whole, Moment("never"), tmp_path / "log")
    assert first.code == 0, first.output

    def fill() -> None:
        wait_until(lambda: len(list(run_dir.glob("stages/*/state/step-*"))) >= 2, "the second state", [])
        with (disk / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(65536))

    filler = threading.Thread(target=fill)
    filler.start()
    ended = launch([*ranks, "--max-restarts", "1"], words, run_dir, Moment("never"), tmp_path / "log")
    filler.join()
    assert ended.code == 1
    assert f"r1fast: the disk of {run_dir} is full, stage r1_zero stopped" in ended.output
    assert "are free there, this run writes about" in ended.output  # what the restart found
    (disk / "fill").unlink()
    states = sorted(run_dir.glob("stages/*/state/step-*.pt"))
    assert len(states) == 2
    corrupt(states[-1])
    last = launch(ranks, words, run_dir, Moment("never"), tmp_path / "log")
    assert last.code == 0, last.output
    assert f"{states[-1]}.corrupt is corrupt" in last.output and "going back to the state after step" in last.output
    assert left_behind(run_dir) == left_behind(whole)


def start_hosts(hosts: Hosts, words: list[str], run_dir: Path, logs: list[Path]) -> list[subprocess.Popen[bytes]]:
    """`torchrun` on both, as a user would start it."""
    processes = []
    for number, address in enumerate(ADDRESSES):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        torchrun += ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", "two-hosts"]
        torchrun += ["--rdzv-endpoint", f"{ADDRESSES[0]}:29400", "--local-addr", address]
        # names do not lead to a namespace's address: torchrun has to be told who hosts the store
        torchrun += ["--rdzv-conf", f"join_timeout=1800,read_timeout=900,is_host={number == 0}"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "eth0"}
        with logs[number].open("wb") as log:
            command = hosts.command(number, *torchrun, "-m", "r1fast.train", *words, "--run.dir", str(run_dir))
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    return processes


def wait_until(condition: Callable[[], bool], what: str, logs: list[Path], timeout_s: float = 1800.0) -> float:
    """Seconds it took; fails with the logs."""
    start = time.monotonic()
    while not condition():
        said = "\n".join(log.read_text(errors="replace") for log in logs)
        assert time.monotonic() - start < timeout_s, f"{what} has not come\n{said}"
        time.sleep(0.1)
    return time.monotonic() - start


@pytest.mark.slow
def test_two_hosts_whose_link_is_cut_and_restored(tmp_path: Path) -> None:
    limits = {f"faults.{phase}_s": CUT_S for phase in ("rollout", "reward", "training", "save")}
    words = words_of({**SHORT, "pipeline.stages": '["r1_zero"]', "stages.r1_zero.steps": 12, **limits})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    first = launch([*TORCHRUN, "--nproc_per_node", "2"], words, whole, Moment("never"), tmp_path / "log")
    assert first.code == 0, first.output
    logs = [tmp_path / "host0", tmp_path / "host1"]
    with Hosts() as hosts:
        processes = start_hosts(hosts, words, cut, logs)
        try:
            wait_until(lambda: num_logged(cut) >= 2, "the second step", logs)
            hosts.cut()
            named_s = [
                wait_until(lambda log=log: "watchdog: rank" in log.read_text(errors="replace"), "the watchdog", logs)
                for log in logs
            ]
            lines = num_logged(cut)
            hosts.restore()
            codes = [process.wait(timeout=1800) for process in processes]
        finally:
            for process in processes:
                process.kill()
    said = [log.read_text(errors="replace") for log in logs]
    print(f"named after {named_s} s, with {lines} steps logged", *said, sep="\n")
    assert codes == [0, 0]
    for number, text in enumerate(said):
        assert re.search(rf"watchdog: rank {number} .*missing: rank {1 - number} ", text), text
    assert "r1_zero: continuing after step" in said[0]
    assert left_behind(cut) == left_behind(whole)
