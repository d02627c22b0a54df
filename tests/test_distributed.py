"""Ranks: reductions by suffix, real collectives over gloo, the lock."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from r1fast import distributed
from r1fast.config import ConfigError
from r1fast.distributed import Ranks, RunDirectoryInUse, idle_gpu_hint, lock_run_dir, merge, start

ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def test_merge_reduces_by_suffix_and_tolerates_missing_keys() -> None:
    parts = [
        {"a_sum": 1.5, "n_count": 2.0, "r_min": 0.5, "r_max": 3.0},
        {},
        {"a_sum": 2.0, "r_min": -1.0, "r_max": 1.0},
    ]
    assert merge(parts) == {"a_sum": 3.5, "n_count": 2.0, "r_min": -1.0, "r_max": 3.0}
    assert merge([]) == {}


@pytest.mark.parametrize("order", [1, -1])
def test_nan_is_not_lost_in_an_extreme(order: int) -> None:
    merged = merge([{"r_max": math.nan, "r_min": 1.0}, {"r_max": 1.0, "r_min": math.nan}][::order])
    assert math.isnan(merged["r_max"]) and math.isnan(merged["r_min"])


@pytest.mark.parametrize("name", ["loss", "loss_mean", "grad_norm"])
def test_a_name_without_reduction_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Ranks().reduce({name: 1.0})


def test_one_process_is_a_world_of_one() -> None:
    ranks = start("cpu")
    assert (ranks.rank, ranks.world_size, ranks.device.type) == (0, 1, "cpu")
    tensor = torch.ones(2)
    assert ranks.all_reduce_(tensor) is tensor and ranks.broadcast_(tensor) is tensor
    assert ranks.gather_objects("a") == ["a"] and ranks.broadcast_object(5) == 5 and ranks.shard([1, 2]) == [1, 2]
    ranks.barrier()
    ranks.shutdown()


def test_shares_are_disjoint_and_complete() -> None:
    shares = [Ranks(rank=rank, world_size=3).shard(list(range(8))) for rank in range(3)]
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


WORKER = """
import torch
from r1fast.distributed import start
ranks = start("cpu")
assert ranks.world_size == 2
tensor = torch.full((3,), float(ranks.rank + 1))
assert ranks.all_reduce_(tensor).tolist() == [3.0] * 3
assert ranks.broadcast_(torch.full((1,), float(ranks.rank))).item() == 0.0
assert ranks.gather_objects(ranks.rank * 10) == [0, 10]
assert ranks.broadcast_object({"rank": ranks.rank}) == {"rank": 0}
values = {"a_sum": 1.0, "b_max": float(ranks.rank)} if ranks.rank == 0 else {"a_sum": 2.0, "b_max": 7.0, "c_count": 1.0}
assert ranks.reduce(values) == {"a_sum": 3.0, "b_max": 7.0, "c_count": 1.0}
ranks.barrier()
ranks.shutdown()
"""


def test_collectives_of_two_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER], env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [worker.wait(timeout=60) for worker in workers] == [0, 0]


def test_incomplete_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"):
        start("cpu")


@pytest.mark.parametrize(("name", "message"), [("mps", "not supported"), ("cuda:99", "GPU 99 is wanted")])
def test_a_device_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        start(name)


def test_the_lock_names_its_holder_and_is_given_back(tmp_path: Path) -> None:
    first = lock_run_dir(tmp_path / "run")
    with pytest.raises(RunDirectoryInUse, match=f"in use by process {os.getpid()}"):
        lock_run_dir(tmp_path / "run", wait_s=0)
    other = lock_run_dir(tmp_path / "run", rank=1)
    first.close()
    lock_run_dir(tmp_path / "run").close()
    other.close()


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    code = f"from r1fast.distributed import *; f = lock_run_dir({str(tmp_path)!r}); print('held', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(RunDirectoryInUse, match=f"process {holder.pid}"):
            lock_run_dir(tmp_path, wait_s=0)
        holder.kill()
    lock_run_dir(tmp_path).close()


def test_a_holder_that_ends_is_waited_for_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    holder = lock_run_dir(tmp_path)
    end = threading.Timer(0.3, holder.close)
    end.start()
    lock_run_dir(tmp_path, wait_s=60).close()
    end.join()
    assert f"in use by process {os.getpid()}; waiting 60 s" in capsys.readouterr().err


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written to \(Not a directory\); choose another with --run\.dir"):
        lock_run_dir(tmp_path / "file" / "run")


def test_idle_gpus_are_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert idle_gpu_hint(Ranks()) is None or torch.cuda.is_available()
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    hint = idle_gpu_hint(Ranks(device=torch.device("cuda", 0)))
    assert hint is not None and "7 of 8 GPUs" in hint and "--nproc_per_node 8" in hint
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert idle_gpu_hint(Ranks(world_size=8, device=torch.device("cuda", 0))) is None
