"""The watchdog of every process: a phase that stands still is named, every stack is written, the process ends.

A thread counts how long `Pulse` has shown no progress; it needs nothing of the main thread, which may be stuck in C.
Should even the thread not run (something in C holds Python's lock), a timer of `faulthandler`, which needs no lock,
ends the process. Seconds count only while the thread itself runs, so a process that was suspended is not late.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

from r1fast.distributed import Ranks
from r1fast.failure import write_failure
from r1fast.faults_config import FaultsConfig
from r1fast.heartbeats import Peers, Report, Store, connect_to_store
from r1fast.stall import Verdict, judge
from r1fast.stop import StopRequest

FAULTS_DIR = "faults"  # in a run's directory
FAILURE = 1
TICKS_PER_LIMIT = 10
MOST_INTERVAL_S, LEAST_INTERVAL_S = 5.0, 0.05
MOST_PATIENCE_S = 1800.0  # with another rank's save, where it has no limit
LISTEN_SHARE = 0.25  # of its limit after which a process that waits begins to hear the others


class Stuck(RuntimeError):
    """A phase made no progress for its limit."""


class Watchdog:
    """Context manager around a run (collective). `stage` names the one that runs, for `failure.json`.

    Stacks go to `faults/rank-N.txt` in the run's directory. On SIGTERM (`stop`) what is safe is saved at once, for the
    step may take longer than a launcher waits. `leave` ends the process.
    """

    def __init__(
        self,
        ranks: Ranks,
        limits: FaultsConfig,
        run_dir: Path,
        *,
        stop: StopRequest | None = None,
        stage: Callable[[], str] = str,
        connect: Callable[[], Store] = connect_to_store,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._ranks, self._pulse, self._limits, self._run_dir = ranks, ranks.pulse, limits, run_dir
        self._stop_request, self._stage = stop or StopRequest(), stage
        self._connect, self._leave = connect, leave
        on = [limit for limit in map(self._limit_s, PHASES) if limit] + [limits.slow_s] * (limits.slow_s > 0)
        self._interval_s = min(max(min(on, default=0.0) / TICKS_PER_LIMIT, LEAST_INTERVAL_S), MOST_INTERVAL_S)
        self._is_on = bool(on)
        self._peers: Peers | None = None
        self._stacks: IO[str] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._tick, self._seen, self._still_s = 0, -1, 0.0
        self._told_at_s = 0.0

    def __enter__(self) -> Watchdog:
        if not self._is_on:
            return self
        path = self._run_dir / FAULTS_DIR / f"rank-{self._ranks.rank}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stacks = path.open("a", encoding="utf-8")
        self._arm(self._limit_s(self._pulse.phase))  # the thread may never get to it
        if self._ranks.world_size > 1:
            prefix = f"r1fast/{self._ranks.broadcast_object(uuid.uuid4().hex)}"
            self._peers = Peers(self._connect, prefix, self._ranks.world_size, interval_s=self._interval_s)
            self._peers.tell(self._report())
            self._peers.exchange(self._connect())
            self._ranks.barrier()  # from here on all reports are there
            self._peers.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._stacks is None:
            return
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if self._peers is not None:
            self._peers.stop()
        path = Path(self._stacks.name)
        self._stacks.close()
        with contextlib.suppress(OSError):  # one that has something in it stays, and so does its directory
            if path.stat().st_size == 0:
                path.unlink()
                path.parent.rmdir()

    def _run(self) -> None:
        before = time.monotonic()
        while not self._stop.wait(self._interval_s):
            now = time.monotonic()
            self.look(min(now - before, 2 * self._interval_s))
            before = now

    def look(self, elapsed_s: float) -> None:
        """One look, `elapsed_s` seconds after the one before."""
        beats = self._pulse.num_beats
        self._still_s = self._still_s + elapsed_s if beats == self._seen else 0.0
        self._seen = beats
        if self._stop_request.requested and self._pulse.safe.is_there:
            self._save()
        own = self._report()
        self._arm(own.limit_s)
        heard = {}
        if self._peers is not None:
            self._peers.tell(own)
            listen_s = min(value for value in (LISTEN_SHARE * own.limit_s, self._limits.slow_s, float("inf")) if value)
            self._peers.listens = own.waits and own.still_s >= listen_s
            if (told := self._peers.flags.get("ends")) is not None:
                self._end(f"rank {own.rank} ends, too: {told}")
                return
            heard = self._peers.heard()
        verdict = judge(own, heard, self._ranks.world_size, slow_s=self._limits.slow_s)
        if verdict is None:
            self._told_at_s = self._told_at_s if own.still_s else 0.0
        elif verdict.kind == "stuck":
            self._end(verdict.text, first=True)
        elif own.still_s >= 2 * self._told_at_s and own.rank == self._first_waiting(own, verdict):
            self._told_at_s = own.still_s  # again after twice the time
            self._say(f"warning: {verdict.text}")

    def _first_waiting(self, own: Report, verdict: Verdict) -> int:
        """The lowest rank that waits: it speaks for all."""
        assert self._peers is not None
        waiting = [rank for rank, other in self._peers.heard().items() if other.report.waits]
        return min([*waiting, own.rank])

    def _limit_s(self, phase: str) -> float:
        return float(getattr(self._limits, f"{phase}_s"))

    def _report(self) -> Report:
        pulse, self._tick = self._pulse, self._tick + 1
        return Report(
            rank=self._ranks.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            phase=pulse.phase,
            doing=pulse.doing,
            num_beats=pulse.num_beats,
            still_s=self._still_s,
            limit_s=self._limit_s(pulse.phase),
            collective=pulse.collective,
            num_collectives=pulse.num_collectives,
            waits=pulse.waits,
            tick=self._tick,
        )

    def _arm(self, limit_s: float) -> None:
        """Should this thread not run for the limit, faulthandler's writes the stacks and, under torchrun, ends all.

        Not without torchrun: a shell may have suspended the process.
        """
        assert self._stacks is not None
        if limit_s:
            under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
            faulthandler.dump_traceback_later(
                limit_s + self._interval_s, exit=under_torchrun, file=self._stacks.fileno()
            )
        else:
            faulthandler.cancel_dump_traceback_later()

    def _end(self, text: str, *, first: bool = False) -> None:
        """Tell everybody, write this process's stacks, save what is safe, and leave."""
        try:
            if first and self._peers is not None:
                self._peers.raise_flag("ends", text)
            with contextlib.suppress(OSError):  # the run directory's disk may be what stands still
                self._write_stacks(text)
                if first:
                    self._note(text)
            if self._ranks.rank == 0 and self._pulse.safe.is_there and self._peers is not None:
                self._peers.raise_flag("saves", "")
            self._save()
            if self._peers is not None:
                self._linger(self._peers)
        finally:
            self._stop.set()
            self._leave(FAILURE)

    def _write_stacks(self, text: str) -> None:
        assert self._stacks is not None
        self._say(f"watchdog: {text}; the stacks of all threads are in {self._stacks.name}")
        self._stacks.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._stacks.flush()
        faulthandler.dump_traceback(self._stacks.fileno(), all_threads=True)

    def _note(self, text: str) -> None:
        try:
            raise Stuck(text)
        except Stuck as stuck:
            write_failure(self._run_dir, self._stage(), stuck)

    def _save(self) -> None:
        """Write the state between two steps, if this rank has one; the rank that has it is 0.

        A thread writes, and this one goes on telling the others. A write without progress for its limit is given up.
        """
        if not self._pulse.safe.is_there:
            return
        writer = threading.Thread(target=self._write_what_is_safe, name="watchdog's save", daemon=True)
        writer.start()
        still_s, seen, limit_s = 0.0, -1, self._limits.save_s
        while writer.is_alive() and not 0 < limit_s < still_s:
            beats = self._pulse.num_beats
            still_s = still_s + self._interval_s if beats == seen else 0.0
            seen = beats
            self._arm(limit_s - still_s if limit_s else 0.0)
            if self._peers is not None:
                self._peers.tell(self._report())
            writer.join(self._interval_s)

    def _write_what_is_safe(self) -> None:
        safe = self._pulse.safe
        try:
            if saved := safe.save():
                self._say(f"watchdog: saved {saved}")
        except Exception as error:  # whatever it is, the process ends anyhow
            self._say(f"watchdog: {safe.name} could not be saved ({type(error).__name__}: {error})")

    def _linger(self, peers: Peers) -> None:
        """Until all have seen the flag, which may be in a store that ends with a process, and rank 0 has saved.

        When one process has ended torchrun kills the others.
        """
        if self._ranks.rank == 0:
            peers.raise_flag("saved", "")
        time.sleep(4 * self._interval_s)
        patience_s = self._limits.save_s or MOST_PATIENCE_S
        while "saves" in peers.flags and "saved" not in peers.flags and patience_s > 0:
            time.sleep(self._interval_s)
            patience_s -= self._interval_s

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody listens
            print(f"r1fast: {text}", file=sys.stderr, flush=True)


PHASES = ("loading", "rollout", "reward", "training", "save", "evaluation")
