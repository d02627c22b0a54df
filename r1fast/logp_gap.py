"""Rollout and trainer log-probs held against each other at every step: warn, then correct, then stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from r1fast.config import LossConfig
from r1fast.kernels.policy_loss import PolicyLoss
from r1fast.metrics import ratios
from r1fast.schedule import at

Sums = dict[str, float]
Update = Callable[[PolicyLoss, Callable[[Sums], None]], Sums]
"""One optimizer step with these options, which shows its sums to the second argument before anything is updated."""

_CAUSES = (
    "the samples are not from this policy. Check run.dtype, and whether the model's positions change with length "
    "(rope_type dynamic or longrope in its config.json)"
)


class LogpGap:
    """What the gap (mean |log-prob of the rollout - of the trainer|, of one policy) leads to, by [loss] and rl.strict.

    From `warn_gap` on it warns, once in a stage; from `correct_gap` on the step and all after it have truncated
    importance weights, where no correction is configured; from `stop_gap` on the step raises RuntimeError before
    anything is updated. With `strict` any difference raises.
    """

    def __init__(self, loss: LossConfig, warn: Callable[[str], None], *, strict: bool = False) -> None:
        self._loss, self._warn, self._strict = loss, warn, strict
        self._warned = self._corrects = False

    def update(self, run: Update, loss: PolicyLoss, step: int) -> Sums:
        """Step number `step` (from 0): `run` with the options in force, a second time where the first asks for that."""
        try:
            return run(self.in_force(loss), lambda sums: self._check(sums, loss, step))
        except _CorrectionNeeded as found:
            said = str(found)
        # out here the first run's gradient, which the error's frames hold, is gone
        self._warned = self._corrects = True
        self._warn(f"{said}: from this step on truncated importance weights correct it (loss.correct_gap); {_CAUSES}")
        return run(self.in_force(loss), lambda sums: None)

    def state_dict(self) -> dict[str, bool]:
        """What has happened; loads with `weights_only`."""
        return {"warned": self._warned, "corrects": self._corrects}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`."""
        self._warned, self._corrects = state["warned"], state["corrects"]

    def in_force(self, loss: PolicyLoss) -> PolicyLoss:
        """The options that a step is run with."""
        return replace(loss, correction="truncate") if self._corrects and loss.correction == "none" else loss

    def _check(self, sums: Sums, loss: PolicyLoss, step: int) -> None:
        found = ratios(sums)
        if "logp_gap" not in found:  # nothing was trained on
            return
        gap, largest = found["logp_gap"], found["logp_gap_max"]
        text = (
            f"step {step + 1}: rollout and trainer log-probs differ by {gap:.3g} nats a token on average (max ratio "
            f"{max_ratio(largest):.3g})"
        )
        if self._strict and largest > 0:
            raise RuntimeError(
                f"{text}, and rl.strict = true wants them bitwise equal; nothing was updated. Either the model does "
                "something that depends on the other tokens of a batch (rope_type dynamic or longrope, experts), or "
                "this CPU's products do; set rl.strict = false"
            )
        warn, correct, stop = (at(x, step) for x in (self._loss.warn_gap, self._loss.correct_gap, self._loss.stop_gap))
        if 0 < stop <= gap:
            raise RuntimeError(
                f"{text}, loss.stop_gap is {stop:g}; nothing was updated: {_CAUSES}, or raise loss.stop_gap"
            )
        if 0 < correct <= gap and loss.correction == "none" and not self._corrects:
            raise _CorrectionNeeded(text)
        if 0 < warn <= gap and not self._warned:
            self._warned = True
            self._warn(f"{text}, loss.warn_gap is {warn:g}: {_CAUSES}")


class _CorrectionNeeded(Exception):
    """The step must be run again, with importance weights."""


def max_ratio(largest_gap: float) -> float:
    """The largest ratio of two probabilities whose logarithms differ by at most this; inf where it overflows."""
    return math.exp(largest_gap) if largest_gap < 700 else math.inf
