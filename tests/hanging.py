"""Two processes under the watchdog, of which rank 1 does what it is told while rank 0 waits for it in a collective.

RANK=0|1 WORLD_SIZE=2 ... python tests/hanging.py DIRECTORY LIMIT_S WHAT

stuck     sleeps in its rollout
locked    sleeps in C and holds Python's lock, so that not even its watchdog's thread runs
slow      makes progress, for twice the limit
stopped   is stopped by the kernel (SIGSTOP)
both      waits in a collective of its own making, while rank 0 waits in another
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from r1fast.distributed import start
from r1fast.faults_config import FaultsConfig
from r1fast.watchdog import Watchdog


def limits(limit_s: float) -> FaultsConfig:
    """The same for every phase, and half of it until a slow rank is named."""
    names = ("loading_s", "rollout_s", "reward_s", "training_s", "save_s", "evaluation_s")
    return FaultsConfig(**dict.fromkeys(names, limit_s), slow_s=limit_s / 2)  # type: ignore[arg-type]


def main(directory: Path, limit_s: float, what: str) -> None:
    """Both ranks."""
    ranks = start("cpu")
    with Watchdog(ranks, limits(limit_s), directory, stage=lambda: "rl_1"):
        if ranks.rank == 0:
            ranks.pulse.safe.offer("step 7", lambda: (directory / "saved").touch())
        with ranks.pulse.during("rollout"):
            if ranks.rank == 1:
                ranks.pulse.beat("decode steps")
                time.sleep(limit_s / 2)  # until it has told so
                misbehave(what, limit_s, ranks.pulse.beat)
        with ranks.pulse.during("training"):
            if ranks.rank == 1 and what == "both":
                with ranks.pulse.together("ZeRO step"):
                    time.sleep(600)
            ranks.barrier()
    ranks.shutdown()


def misbehave(what: str, limit_s: float, beat: object) -> None:
    """Rank 1's part."""
    if what == "stuck":
        time.sleep(600)
    elif what == "locked":
        ctypes.PyDLL(None).sleep(600)
    elif what == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "slow":
        assert callable(beat)
        for _ in range(20):
            time.sleep(limit_s / 10)
            beat("decode steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
