"""SIGTERM: stop at once, or as soon as a stage that can save its state has done so."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """SIGTERM arrived; what was saved stays, the next launch continues. No error: `except Exception` lets it pass."""


class StopRequest:
    """Whether SIGTERM has arrived. It raises `Stopped` between two Python instructions of the main thread.

    While work is `held` it only sets `requested`: the work looks there where its state is whole, and parts of it may be
    `interruptible` again. Later signals change nothing (launchers and schedulers repeat them); SIGKILL is always safe.
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
        """Within, wait for the end, which raises `Stopped` if the signal has arrived and nobody has looked."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before
        self._raise_if_due()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, stop at once: nothing is half done that the state does not know."""
        before, self._held = self._held, False
        try:
            self._raise_if_due()
            yield
        finally:
            self._held = before

    def _raise_if_due(self) -> None:
        if self.requested and not self._held:
            raise Stopped

    def _arrived(self, _signal: int, _frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if first:
            self._raise_if_due()
