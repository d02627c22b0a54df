"""Curves: what is embedded is what was logged, thinned without losing an extreme where there is too much of it."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_run import log

from r1fast.metrics import iter_metrics, read_metrics
from r1fast.report.curves import MIN_POINTS, READ_POINTS, Series, read_curves, thin


def points_of(stage: dict[str, Any], name: str) -> list[tuple[int, Any]]:
    series = stage["series"][name]
    return list(zip(stage["steps"][series["s"]], series["v"], strict=True))


def test_a_short_run_is_embedded_whole(tmp_path: Path) -> None:
    log(tmp_path, "rl_1", {0: {"dev/accuracy": 0.25}, 1: {"reward": 0.1 + 0.2, "time/s": 2.0}, 2: {"reward": 1e-30}})
    log(tmp_path, "sft_1", {1: {"loss": 3.5}})
    curves = read_curves(iter_metrics(tmp_path), 1000)
    assert list(curves) == ["rl_1", "sft_1"]
    rl = curves["rl_1"]
    assert (rl["rows"], rl["last"]) == (3, 2)
    assert points_of(rl, "reward") == [(1, 0.1 + 0.2), (2, 1e-30)]  # to the last bit
    assert points_of(rl, "dev/accuracy") == [(0, 0.25)] and points_of(rl, "time/s") == [(1, 2.0)]
    assert points_of(curves["sft_1"], "loss") == [(1, 3.5)]
    lines = read_metrics(tmp_path)
    assert sum(len(line) - 2 for line in lines) == sum(
        one["n"] for stage in curves.values() for one in stage["series"].values()
    )


def test_figures_that_are_not_finite_are_words_and_counted(tmp_path: Path) -> None:
    log(tmp_path, "rl_1", {1: {"kl": math.nan}, 2: {"kl": math.inf}, 3: {"kl": -math.inf}, 4: {"kl": 0.5}})
    stage = read_curves(iter_metrics(tmp_path), 1000)["rl_1"]
    assert points_of(stage, "kl") == [(1, "nan"), (2, "inf"), (3, "-inf"), (4, 0.5)]
    assert stage["series"]["kl"]["bad"] == 3 and stage["series"]["kl"]["n"] == 4


def test_series_share_their_steps() -> None:
    lines = [{"stage": "a", "step": step, "a/x": 1.0, "a/y": 2.0} for step in range(50)]
    lines.append({"stage": "a", "step": 50, "a/x": 1.0})
    stage = read_curves(lines, 10_000)["a"]
    assert [len(steps) for steps in stage["steps"]] == [51, 50]


@given(
    st.lists(st.floats(-100, 100) | st.just(math.nan), min_size=1, max_size=200),
    st.integers(4, 40),
    st.integers(1, 7),
)
def test_thinning_keeps_ends_and_extremes_of_real_points(values: list[float], limit: int, stride: int) -> None:
    points = [(stride * step, value) for step, value in enumerate(values)]
    kept = thin(points, limit)
    assert len(kept) <= max(limit, 4)
    assert set(kept) <= set(points) and kept == sorted(kept, key=lambda point: point[0])
    assert kept[0] is points[0] and kept[-1] is points[-1]
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        left = [value for _, value in kept if math.isfinite(value)]
        assert (min(left), max(left)) == (min(finite), max(finite))


def test_hundreds_of_thousands_of_steps_stay_small_and_keep_their_outliers() -> None:
    count, spike, dip = 300_000, 123_456, 271_828
    series = Series()
    for step in range(1, count + 1):
        series.add(step, 7.0 if step == spike else -7.0 if step == dip else math.sin(step / 5000))
    assert len(series.points) < READ_POINTS
    assert series.num_points == count
    kept = dict(series.points)
    assert kept[spike] == 7.0 and kept[dip] == -7.0
    assert kept[1] == math.sin(1 / 5000) and kept[count] == math.sin(count / 5000)
    steps = sorted(kept)
    assert max(after - before for before, after in pairwise(steps)) < count / 100  # no hole


def test_the_budget_is_for_all_series_together() -> None:
    names = [f"a/x{number}" for number in range(20)]
    lines = [{"stage": "a", "step": step, **dict.fromkeys(names, float(step % 17))} for step in range(1000)]
    stage = read_curves(lines, 4000)["a"]
    assert [len(one["v"]) <= 200 for one in stage["series"].values()] == [True] * 20
    assert all(one["n"] == 1000 for one in stage["series"].values())
    starved = read_curves(lines, 20)["a"]
    assert all(MIN_POINTS // 2 < len(one["v"]) <= MIN_POINTS for one in starved["series"].values())


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    log(tmp_path, "a", {1: {"x": 1.0}})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + "{broken\n" + '{"stage": "a", "st', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_curves(iter_metrics(tmp_path), 1000)
