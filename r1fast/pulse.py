"""What this process is doing: told by the work as it goes on, read by the watchdog's thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

Phase = Literal["loading", "rollout", "reward", "training", "save", "evaluation"]
"""What a process can be busy with; `loading` is also all that lies between the others."""


class Pulse:
    """Phase, progress and collectives of one process.

    One thread writes, others read single fields: each is one reference or one number, so there is no lock, and a beat
    costs some 50 ns. `num_beats` counts every sign of progress; `doing` says what the last one was.
    """

    def __init__(self) -> None:
        self.num_beats = 0
        self.phase: Phase = "loading"
        self.doing = ""
        self.collective = ""
        self.num_collectives = 0
        self.waits = False
        """Whether it is inside a collective, the last one."""
        self.safe = SafePoint()

    def beat(self, doing: str = "") -> None:
        """Something got done."""
        if doing:
            self.doing = doing
        self.num_beats += 1

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Within, the process is busy with `phase`; the phase around it goes on after that."""
        before, self.phase = self.phase, phase
        self.beat(f"{phase} began")
        try:
            yield
        finally:
            self.phase = before
            self.beat(f"{phase} ended")

    @contextmanager
    def together(self, name: str) -> Iterator[None]:
        """Within, it waits for the other processes; all of them do so in the same order."""
        self.collective = name
        self.num_collectives += 1
        self.waits = True
        self.num_beats += 1
        try:
            yield
        finally:
            self.waits = False
            self.num_beats += 1


class SafePoint:
    """What can be saved at once, by any thread, should the process have to end: the state between two steps.

    `offer` it when a step is done and `withdraw` it before anything of it changes. While one thread saves, `withdraw`
    waits, so that nothing half changed is written.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._save: Callable[[], None] | None = None
        self.name = ""

    def offer(self, name: str, save: Callable[[], None]) -> None:
        """`save` writes what `name` describes."""
        with self._lock:
            self._save, self.name = save, name

    def withdraw(self) -> None:
        """It is about to change."""
        with self._lock:
            self._save = None

    @property
    def is_there(self) -> bool:
        """Whether there is something to save."""
        return self._save is not None

    def save(self) -> str:
        """Write it, once; its name, empty where there was nothing. Raises what writing raises."""
        with self._lock:
            save, self._save = self._save, None
            if save is None:
                return ""
            save()
            return self.name
