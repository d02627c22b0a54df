"""95% intervals of a mean over problems, and of the difference of two models on the same problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

NORMAL_95 = 1.959964  # two-sided 95% quantile of the normal distribution


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95% interval of a mean over problems (the k samples of a problem are one observation), by the normal law."""
    count = len(values)
    if count < 2:
        return (0.0, 1.0)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    half = NORMAL_95 * math.sqrt(variance / count)
    return mean - half, mean + half


def paired_difference(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, Any]:
    """Mean difference in pass@1 over the problems that both models answered, with its 95% interval."""
    differences = [first[key] - second[key] for key in first if key in second]
    low, high = mean_interval(differences) if len(differences) > 1 else (-1.0, 1.0)
    return {"mean": sum(differences) / max(1, len(differences)), "ci": [low, high], "num_problems": len(differences)}
