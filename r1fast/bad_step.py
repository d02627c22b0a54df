"""A step whose loss or gradient is no good: what is raised before anything is updated."""

from __future__ import annotations

import math
from collections.abc import Mapping


class BadStep(RuntimeError):
    """Nothing was updated. `sums` are what the step would have returned, `grad_norm_sum` included (NaN: not known)."""

    def __init__(self, message: str, sums: Mapping[str, float], grad_norm: float) -> None:
        super().__init__(message)
        self.sums = {**sums, "loss_count": 1.0, "grad_norm_sum": grad_norm, "grad_norm_count": 1.0}


def require_good(
    sums: Mapping[str, float], grad_norm: float, *, num_steps: int, version: int, most_norm: float = math.inf
) -> None:
    """Raise BadStep for a loss or a gradient that is not finite, and for a gradient's norm above `most_norm`."""
    where = f"at step {num_steps} (policy version {version}); nothing was updated"
    advice = (
        "Look at the ratio and log-prob metrics of the steps before; a lower rate, loss.level other than "
        "sequence_sum, or clipping usually helps"
    )
    if not math.isfinite(sums["loss_sum"]):
        raise BadStep(f"the loss is {sums['loss_sum']} {where}. {advice}", sums, grad_norm)
    if not math.isfinite(grad_norm):
        raise BadStep(f"the gradient's norm is {grad_norm} {where}. {advice}", sums, grad_norm)
    if grad_norm > most_norm:
        raise BadStep(
            f"the gradient's norm is {grad_norm:.4g}, a spike above {most_norm:.4g}, {where}", sums, grad_norm
        )
