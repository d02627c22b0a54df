"""The curves of a run: every quantity of metrics.jsonl, thinned where there are more steps than a chart can show."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from r1fast.report.shares import level

READ_POINTS = 4096  # points of one series held while reading; thinned to half of that whenever it is reached

MIN_POINTS = 64  # of a series, whatever the budget: fewer do not make a curve

Point = tuple[int, float]  # step, value


@dataclass
class Series:
    """One quantity of one stage: `points` of it, how many there were, and how many of those were not finite."""

    points: list[Point] = field(default_factory=list)
    num_points: int = 0
    num_not_finite: int = 0

    def add(self, step: int, value: float) -> None:
        """The next value; memory stays bounded."""
        self.num_points += 1
        self.num_not_finite += not math.isfinite(value)
        self.points.append((step, value))
        if len(self.points) >= READ_POINTS:
            self.points = thin(self.points, READ_POINTS // 2)


def thin(points: list[Point], limit: int) -> list[Point]:
    """`limit` points at the most (4 at the least): of every stretch of steps the smallest and the largest value.

    First and last stay too. Every point that is left is a real one, so an outlier is never averaged away.
    """
    if len(points) <= limit:
        return points
    num_stretches = max(1, (limit - 2) // 2)
    first, last = points[0][0], points[-1][0]
    width = (last - first + 1) / num_stretches
    extremes: dict[int, tuple[Point, Point]] = {}
    for point in points:
        if not math.isfinite(point[1]):
            continue
        stretch = int((point[0] - first) / width)
        low, high = extremes.get(stretch, (point, point))
        extremes[stretch] = (min(low, point, key=_value), max(high, point, key=_value))
    kept = [points[0], points[-1], *(point for pair in extremes.values() for point in pair)]
    return sorted({point[0]: point for point in kept}.values(), key=_step)


def read_curves(lines: Iterable[Mapping[str, Any]], max_values: int) -> dict[str, Any]:
    """Stage -> its curves, of `metrics.iter_metrics`; `max_values` for all series of the run together.

    A stage is {"rows", "last", "steps": distinct lists of steps, "series": name -> {"s": which of them, "v": values,
    "n": points before thinning, "bad": values that were not finite}}. Names are those of metrics.jsonl without
    the stage. Values that are not finite are written as metrics.jsonl writes them: "nan", "inf", "-inf".
    """
    stages: dict[str, dict[str, Series]] = {}
    rows: dict[str, list[int]] = {}  # stage -> number of lines, last step
    for line in lines:
        stage, step = str(line["stage"]), int(line["step"])
        series = stages.setdefault(stage, {})
        rows[stage] = [rows.get(stage, [0])[0] + 1, step]
        for key, value in line.items():
            if key not in ("stage", "step"):
                series.setdefault(key.removeprefix(f"{stage}/"), Series()).add(step, value)
    limit = level([len(one.points) for series in stages.values() for one in series.values()], max_values)
    return {
        stage: {"rows": rows[stage][0], "last": rows[stage][1], **_columns(series, limit)}
        for stage, series in stages.items()
    }


def _columns(series: Mapping[str, Series], limit: int) -> dict[str, Any]:
    """The series of a stage with their steps apart: most share one list of steps."""
    numbers: dict[tuple[int, ...], int] = {}
    columns = {}
    for name, one in series.items():
        points = thin(one.points, max(limit, MIN_POINTS))
        number = numbers.setdefault(tuple(map(_step, points)), len(numbers))
        values = [value if math.isfinite(value) else str(value) for _, value in points]
        columns[name] = {"s": number, "v": values, "n": one.num_points, "bad": one.num_not_finite}
    return {"steps": [list(steps) for steps in numbers], "series": columns}


def _step(point: Point) -> int:
    return point[0]


def _value(point: Point) -> float:
    return point[1]
