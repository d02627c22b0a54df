"""Processes: who am I under torchrun, and the few collectives that training needs. One process needs none of it."""

from __future__ import annotations

import fcntl
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from r1fast.config import ConfigError
from r1fast.fresh_store import fresh_store
from r1fast.pulse import Pulse

# Ranks wait for the slowest one's rollout; a dead rank is noticed by torchrun, not by this.
COLLECTIVE_TIMEOUT = timedelta(hours=2)
LOCK_WAIT_S = 5.0  # a killed process gives its memory back before its lock

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among `world_size`; `device` is its own. Every method but `shard` is collective: all ranks call it.

    With one process all of them return at once what a world of one would. `sequence_parallel` neighbours share each
    micro-batch, see `in_sequence_groups`.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    sequence_parallel: int = 1
    sequence_group: Any = None
    pulse: Pulse = field(default_factory=Pulse, repr=False, compare=False)
    """What this process is doing, for the watchdog."""

    @property
    def num_shares(self) -> int:
        """Into how many shares training is divided."""
        return self.world_size // self.sequence_parallel

    @property
    def sequence_place(self) -> int:
        """Place among the processes that have the same share; figures of the share are place 0's to give."""
        return self.rank % self.sequence_parallel

    def in_sequence_groups(self, size: int) -> Ranks:
        """The same processes, of which `size` neighbours have the same share of what is trained on (collective)."""
        if size == 1:
            return self
        if self.world_size % size:
            raise ConfigError(
                f"distributed.sequence_parallel = {size} does not divide {self.world_size} processes; start a multiple"
            )
        group, _ = dist.new_subgroups(size)  # type: ignore[no-untyped-call]
        return replace(self, sequence_parallel=size, sequence_group=group)

    def shard(self, items: Sequence[T]) -> list[T]:
        """This rank's share: every `world_size`-th item, so that ranks get like shares of a sorted list."""
        return list(items[self.rank :: self.world_size])

    def reduce(self, values: Mapping[str, float]) -> dict[str, float]:
        """Metrics of all ranks by their suffix, see `merge`; a rank may lack keys that another one has."""
        return merge(self.gather_objects(dict(values)))

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks, in place; the result is the same bits on every rank."""
        if self.world_size > 1:
            with self._together("all_reduce"):
                dist.all_reduce(tensor)
                _wait_for(tensor)
        return tensor

    def broadcast_(self, tensor: Tensor, src: int = 0) -> Tensor:
        """Rank `src`'s values, in place."""
        if self.world_size > 1:
            with self._together("broadcast"):
                dist.broadcast(tensor, src=src)
                _wait_for(tensor)
        return tensor

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank (pickled: for small things)."""
        if self.world_size == 1:
            return [value]
        gathered: list[T | None] = [None] * self.world_size
        with self._together("gather_objects"):
            dist.all_gather_object(gathered, value)
        return cast("list[T]", gathered)

    def gather_rows(self, rows: Tensor) -> list[Tensor]:
        """Every rank's `rows` [n, K], by rank, on every rank; n may differ, K and the dtype may not."""
        if self.world_size == 1:
            return [rows]
        counts = self.gather_objects(len(rows))
        padded = rows.new_zeros(max(counts), rows.shape[1])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in counts]
        with self._together("all_gather"):
            dist.all_gather(gathered, padded)
        return [part[:count] for part, count in zip(gathered, counts, strict=True)]

    def exchange(self, parts: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """Send `parts[r]` [n] to rank r and get as many elements from every rank as `counts` says; on the CPU."""
        if self.world_size == 1:
            return list(parts)
        sent = torch.cat(list(parts))
        received = sent.new_empty(sum(counts))
        with self._together("all_to_all"):
            dist.all_to_all_single(received, sent, list(counts), [len(part) for part in parts])
        return list(torch.split(received, list(counts)))

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value (pickled); the other ranks' argument is ignored."""
        if self.world_size == 1:
            return value
        box = [value]
        with self._together("broadcast_object"):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            self.gather_objects(None)

    def shutdown(self) -> None:
        """Leave the process group; call it last."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _together(self, name: str) -> Iterator[None]:
        """Name the usual cause of a collective that fails; the library's own message is the cause of the error."""
        try:
            with self.pulse.together(name):
                yield
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # of this process's own
        except RuntimeError as error:
            raise RankLost(
                "another rank ended while this one waited for it; its own message is above, or torchrun's has its exit "
                f"code ({str(error).splitlines()[0]})"
            ) from error


def _wait_for(tensor: Tensor) -> None:
    """Until the GPU has it: NCCL's calls return at once, and the watchdog is to see who waits for whom."""
    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()


class RankLost(RuntimeError):
    """Another rank ended while this one waited for it."""


def merge(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Reduce metrics by the suffix of their names: `_sum` and `_count` add, `_min` and `_max` take the extreme.

    The one place where metrics of micro-batches and ranks come together. NaN wins everywhere. Raises ValueError for a
    name without such a suffix.
    """
    merged: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            suffix = name.rpartition("_")[2]
            if suffix not in ("sum", "count", "min", "max"):
                raise ValueError(f"metric {name!r} does not name its reduction; end it in _sum, _count, _min or _max")
            if name not in merged:
                merged[name] = float(value)
            elif suffix in ("sum", "count"):
                merged[name] += float(value)
            elif math.isnan(value) or math.isnan(merged[name]):
                merged[name] = math.nan
            else:
                merged[name] = (min if suffix == "min" else max)(merged[name], float(value))
    return merged


def start(device: str = "auto") -> Ranks:
    """Join the other processes of torchrun, if any: gloo for CPU tensors, NCCL for CUDA ones.

    `device`: "auto" (CUDA if there is one), "cpu", "cuda" (the local rank's) or, with one process, "cuda:N". Raises
    ValueError for a device that is not there and an incomplete environment.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world_size > 1 and missing:
        raise ValueError(
            f"WORLD_SIZE={world_size} but {', '.join(missing)} not set; launch with torchrun --nproc_per_node N -m "
            "r1fast.train, or unset WORLD_SIZE"
        )
    rank = int(os.environ.get("RANK", "0")) if world_size > 1 else 0
    chosen = _device(device, local_rank, world_size)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        place: dict[str, Any] = {}
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            store = next(rendezvous("env://"))[0]
            own = fresh_store(store, rank, world_size, COLLECTIVE_TIMEOUT.total_seconds())
            place = {"store": own, "rank": rank, "world_size": world_size}
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT, **place)
    return Ranks(rank=rank, world_size=world_size, local_rank=local_rank, device=chosen)


def _device(name: str, local_rank: int, world_size: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"run.device = {name!r} is not supported; use auto, cpu or cuda")
    if device.index is not None and world_size > 1:
        raise ValueError(f"run.device = {name!r} with {world_size} processes; write cuda, each takes its own GPU")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise ValueError(
            f"GPU {index} is wanted (run.device = {name!r}, local rank {local_rank}) but there are "
            f"{torch.cuda.device_count()}; start at most that many processes, or set run.device = 'cpu'"
        )
    return torch.device("cuda", index)


class RunDirectoryInUse(ConfigError):
    """Another process writes to the run directory."""


def lock_run_dir(path: str | Path, rank: int = 0, *, wait_s: float = LOCK_WAIT_S) -> IO[str]:
    """Hold `path` for this process until the returned file is closed or the process ends, so two writers cannot be.

    Every rank locks a file of its own: a worker left over from a killed run keeps the next run out. It is given
    `wait_s` seconds to end.

    Raises:
        RunDirectoryInUse: names the holder's process id.
        ConfigError: the directory cannot be made or written to.
    """
    directory = Path(path)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / (".lock" if rank == 0 else f".lock.{rank}")).open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"run directory {directory} cannot be written to ({error.strerror}); choose another with --run.dir DIR"
        ) from error
    start, told = time.monotonic(), rank != 0
    while not _locked(file):
        file.seek(0)
        holder = file.read().strip() or "unknown"
        if time.monotonic() - start >= wait_s:
            file.close()
            raise RunDirectoryInUse(
                f"run directory {directory} is in use by process {holder}; wait until it ends, stop it "
                f"(kill {holder}), or choose another directory with --run.dir DIR"
            )
        if not told:
            print(
                f"r1fast: {directory} is in use by process {holder}; waiting {wait_s:g} s", file=sys.stderr, flush=True
            )
            told = True
        time.sleep(0.1)
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def idle_gpu_hint(ranks: Ranks) -> str | None:
    """One line on how to use GPUs that this run leaves idle, or None."""
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    num_used = local_size if ranks.device.type == "cuda" else 0
    if num_used >= num_gpus:
        return None
    return (
        f"{num_gpus - num_used} of {num_gpus} GPUs are idle; to use all: "
        f"torchrun --nproc_per_node {num_gpus} -m r1fast.train (and run.device = auto)"
    )
