"""What the processes of a run know of each other: a report of each in torchrun's store, and flags for all to see."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Protocol

ANSWER_S = 30.0  # for one answer of the store


@dataclass(frozen=True, kw_only=True)
class Report:
    """One process's own words. `still_s`: seconds since its last progress, of which `limit_s` are allowed (0: any).

    `tick` grows with every report, so that one which is repeated shows; the rest as in `Pulse`.
    """

    rank: int
    host: str
    pid: int
    phase: str
    doing: str
    num_beats: int
    still_s: float
    limit_s: float
    collective: str
    num_collectives: int
    waits: bool
    tick: int = 0

    def to_text(self) -> str:
        """For the store."""
        return json.dumps(asdict(self))

    @staticmethod
    def of_text(text: str | bytes) -> Report:
        """What `to_text` wrote."""
        return Report(**json.loads(text))


@dataclass(frozen=True)
class Heard:
    """The last report of a process, and for how many seconds it has been repeated or out of reach."""

    report: Report
    silent_s: float


class Store(Protocol):
    """Of torch.distributed's stores what is used here; one connection serves one thread."""

    def set(self, key: str, value: str, /) -> None: ...
    def check(self, keys: list[str], /) -> bool: ...
    def get(self, key: str, /) -> bytes: ...
    def multi_get(self, keys: list[str], /) -> list[bytes]: ...


FLAGS = ("ends", "saves", "saved")  # the run ends; rank 0 saves; rank 0 has saved


class Peers:
    """Tells this process's report, and hears those of others when asked to.

    A thread of its own talks to the store, for a store that is out of reach may not answer for minutes: what was heard
    then only grows older. `connect` opens a connection, and another where one has failed. All keys begin with `prefix`.
    """

    def __init__(self, connect: Callable[[], Store], prefix: str, world_size: int, *, interval_s: float) -> None:
        self._connect, self._prefix, self._world_size, self._interval_s = connect, prefix, world_size, interval_s
        self._own: Report | None = None
        self._reports: dict[int, tuple[Report, float]] = {}  # and when it was new
        self._to_raise: dict[str, str] = {}
        self.flags: dict[str, str] = {}
        self.answered_at = time.monotonic()
        self.listens = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def start(self) -> None:
        """Begin; every process must have told a report before one of them listens."""
        self._thread.start()

    def stop(self) -> None:
        """End, without waiting for a store that does not answer."""
        self._stop.set()
        self._thread.join(timeout=2 * self._interval_s)

    def tell(self, report: Report) -> None:
        """What the store will hold from the next exchange on."""
        self._own = report

    def raise_flag(self, name: str, text: str) -> None:
        """Let all processes see it, soon; the first text stands."""
        self._to_raise[name] = text
        self.flags.setdefault(name, text)

    def heard(self, *, clock: Callable[[], float] = time.monotonic) -> dict[int, Heard]:
        """The reports of all ranks that were heard, by rank."""
        now = clock()
        return {rank: Heard(report, now - fresh_at) for rank, (report, fresh_at) in dict(self._reports).items()}

    def exchange(self, store: Store) -> None:
        """Once: tell, raise flags and see them, and hear, if it `listens`."""
        if self._own is not None:
            store.set(self._key(self._own.rank), self._own.to_text())
        raised = dict(self._to_raise)
        for name, why in raised.items():
            store.set(f"{self._prefix}/{name}", why)
        for name in FLAGS:
            if name not in self.flags and store.check([f"{self._prefix}/{name}"]):
                self.flags[name] = store.get(f"{self._prefix}/{name}").decode()
        for name in raised:
            if store.check([f"{self._prefix}/{name}"]):
                self._to_raise.pop(name, None)
        now = time.monotonic()
        if self.listens:
            texts = store.multi_get([self._key(rank) for rank in range(self._world_size)])
            now = time.monotonic()
            for text in texts:
                report = Report.of_text(text)
                before = self._reports.get(report.rank)
                if before is None or before[0].tick != report.tick:
                    self._reports[report.rank] = report, now
        elif self._reports:
            self._reports = {}  # grown old while nobody asked
        self.answered_at = now

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    def _run(self) -> None:
        store: Store | None = None
        while not self._stop.is_set():
            try:
                store = store or self._connect()
                self.exchange(store)
            except RuntimeError:  # torch's errors of stores are; the watchdog says who was not heard for how long
                store = None
            self._stop.wait(self._interval_s)


def connect_to_store() -> Store:
    """A further connection to the store that torchrun (or rank 0) serves. Raises RuntimeError where there is none."""
    from torch._C._distributed_c10d import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Store = TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=ANSWER_S))
    return store
