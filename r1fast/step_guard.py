"""Updates that are no good, over a stage: skipped while they are few, and dumped for a replay when they are not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from r1fast.bad_step import BadStep
from r1fast.faults_config import FaultsConfig

Sums = dict[str, float]
LEAST_NORMS = 8  # before that the first, large gradients of a run would set the measure


class StepGuard:
    """Runs the optimizer steps of a stage. All ranks decide alike, for they see the same sums and the same norm.

    A step whose loss or gradient is not finite is skipped, and so is a spike where [faults] says so; after `max_skips`
    in a row the next stops the run. `num_skipped` counts those of the stage.
    """

    def __init__(self, faults: FaultsConfig, stage: str, warn: Callable[[str], None]) -> None:
        self._faults, self._stage, self._warn = faults, stage, warn
        self.num_skipped = self._in_row = 0
        self._norms: deque[float] = deque(maxlen=faults.spike_window)

    def update(
        self,
        run: Callable[[float], Sums],
        step: int,
        dump: Callable[[BadStep], Path] | None = None,
    ) -> Sums:
        """Step number `step` (from 1): `run`, which takes the most that the gradient's norm may be.

        Returns its sums, those of a skipped step too. Raises RuntimeError, which names where `dump` wrote the step,
        for one too many.
        """
        spike = self._spike()
        try:
            sums = run(spike if self._faults.spike == "skip" else math.inf)
        except BadStep as bad:
            self.num_skipped += 1
            self._in_row += 1
            if self._in_row > self._faults.max_skips:
                raise RuntimeError(self._last_words(bad, step, dump)) from bad
            self._warn(
                f"{self._stage}, step {step}: {bad}. The update is skipped, {self._in_row} in a row, "
                f"faults.max_skips = {self._faults.max_skips}"
            )
            return bad.sums
        norm = sums["grad_norm_sum"]
        if self._faults.spike == "warn" and norm > spike:
            self._warn(f"{self._stage}, step {step}: the gradient's norm is {norm:.4g}, a spike above {spike:.4g}")
        self._in_row = 0
        if norm > 0.0:  # a step that had nothing to learn from says nothing of the others
            self._norms.append(norm)
        return sums

    def figures(self) -> Sums:
        """For the log: `skipped_updates` of the stage so far; nothing while there are none."""
        return {"skipped_updates": float(self.num_skipped)} if self.num_skipped else {}

    def state_dict(self) -> dict[str, Any]:
        """What the next decision depends on; loads with `weights_only`."""
        return {"num_skipped": self.num_skipped, "in_row": self._in_row, "norms": list(self._norms)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self.num_skipped, self._in_row = state["num_skipped"], state["in_row"]
        self._norms = deque(state["norms"], maxlen=self._faults.spike_window)

    def _spike(self) -> float:
        """The norm from which a gradient is a spike; infinite while too few are known."""
        if self._faults.spike == "off" or len(self._norms) < LEAST_NORMS:
            return math.inf
        return self._faults.spike_factor * median(self._norms)

    def _last_words(self, bad: BadStep, step: int, dump: Callable[[BadStep], Path] | None) -> str:
        words = f"{self._stage}, step {step}: {bad}. It would be skip {self._in_row} in a row, faults.max_skips = "
        words += f"{self._faults.max_skips}"
        return f"{words}; what it trained on: r1fast replay {dump(bad)}" if dump else words
