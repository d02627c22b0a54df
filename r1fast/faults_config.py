"""[faults]: how long a phase may stand still, and what a step that is no good leads to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r1fast.config_option import option

_LIMIT = "without any progress, from which the watchdog ends the process, so that torchrun restarts; 0: never"


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """[faults]: the watchdog of every process, and updates that are skipped. It belongs to the whole run."""

    loading_s: float = option(3600.0, f"seconds of loading and between other phases, {_LIMIT}", need=">= 0")
    rollout_s: float = option(1800.0, f"seconds of a rollout (decode steps), {_LIMIT}", need=">= 0")
    reward_s: float = option(1800.0, f"seconds of scoring (a verdict each), {_LIMIT}", need=">= 0")
    training_s: float = option(1800.0, f"seconds of training (micro-batches), {_LIMIT}", need=">= 0")
    save_s: float = option(1800.0, f"seconds of a save (chunks written), {_LIMIT}", need=">= 0")
    evaluation_s: float = option(1800.0, f"seconds of an evaluation (decode steps), {_LIMIT}", need=">= 0")
    slow_s: float = option(
        120.0,
        "seconds that a process waits for others that do make progress before they are named; 0: never",
        need=">= 0",
    )
    max_skips: int = option(
        3,
        "updates in a row that may be skipped for a loss or gradient that is no good; the next stops the run",
        unit="steps",
        need=">= 0",
    )
    spike: Literal["off", "warn", "skip"] = option(
        "off", "a gradient norm above spike_factor times the median of the last spike_window: warn, or skip the update"
    )
    spike_factor: float = option(10.0, "what counts as a spike, times the median", need="> 1")
    spike_window: int = option(
        64, "accepted updates that the median is of; it acts from 8 on", unit="steps", need=">= 8"
    )
