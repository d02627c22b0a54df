"""torchrun, seen from one of its workers: nothing here needs torch, so that it can be the first thing a worker does."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_launcher() -> None:
    """Under torchrun, let the kernel kill this process when the launcher dies, which SIGKILL of torchrun would not do.

    SIGKILL and not SIGTERM: a worker may wait for a long step, or for ever for another rank, and as long as it lives
    nobody else can have the run directory. Its last saved state is whole. Linux only; elsewhere nothing.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_parent()


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the process that started this one dies. Linux only; elsewhere nothing."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)
