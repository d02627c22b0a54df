"""SIGTERM: stop at once, or as soon as a stage that can save its state has done so."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(Exception):
    """SIGTERM arrived; what was saved stays, the next launch continues."""


class StopRequest:
    """Whether SIGTERM has arrived. Unless held it raises `Stopped` between two Python instructions of the main thread.

    While held it only sets `requested`, and the holder stops where its state is whole; a second one stops at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._held = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM in this process (main thread only)."""
        before = signal.signal(signal.SIGTERM, self._arrived)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let the work inside look at `requested` by itself."""
        self._held = True
        try:
            yield
        finally:
            self._held = False

    def _arrived(self, _signal: int, _frame: FrameType | None) -> None:
        if not self._held or self.requested:
            raise Stopped
        self.requested = True
