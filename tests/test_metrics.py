from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1fast.metrics import MetricsLog, ratios, read_metrics


def lines(run_dir: Path) -> list[str]:
    return (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()


def test_ratios_of_the_loss_kernel() -> None:
    sums = {
        "tokens_count": 4.0,
        "loss_sum": 2.0,
        "kl_sum": 0.4,
        "entropy_sum": 8.0,
        "clip_low_sum": 1.0,
        "clip_high_sum": 2.0,
        "ratio_sum": 4.4,
        "ratio_min": 0.5,
        "ratio_max": 1.5,
        "logp_gap_abs_sum": 0.04,
        "logp_gap_abs_max": 0.02,
    }
    assert ratios(sums) == pytest.approx(
        {
            "tokens_count": 4.0,
            "loss": 0.5,
            "kl": 0.1,
            "entropy": 2.0,
            "clip_low": 0.25,
            "clip_high": 0.5,
            "ratio_mean": 1.1,
            "ratio_min": 0.5,
            "ratio_max": 1.5,
            "logp_gap": 0.01,
            "logp_gap_max": 0.02,
        }
    )


def test_ratios_prefer_the_quantitys_own_count() -> None:
    sums = {"tokens_count": 1000.0, "reward_sum": 5.0, "reward_count": 10.0, "length_max": 7.0, "groups_count": 4.0}
    assert ratios(sums) == {"tokens_count": 1000.0, "reward": 0.5, "length_max": 7.0, "groups_count": 4.0}


def test_ratios_leave_out_what_nothing_was_counted_for() -> None:
    sums = {"tokens_count": 0.0, "kl_sum": 0.0, "ratio_min": math.inf, "reward_count": 2.0, "reward_sum": 1.0}
    assert ratios(sums) == {"tokens_count": 0.0, "reward": 0.5}


@pytest.mark.parametrize(
    ("sums", "message"),
    [({"kl": 1.0}, "does not name its reduction"), ({"kl_sum": 1.0}, "no denominator"), ({"_sum": 1.0}, "reduction")],
)
def test_ratios_refuse(sums: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ratios(sums)


@given(st.lists(st.tuples(st.floats(-100, 100), st.integers(1, 50)), min_size=1, max_size=8))
def test_ratios_do_not_depend_on_how_sums_were_split(parts: list[tuple[float, int]]) -> None:
    """Forming the ratio after the reduction is the token mean, however unequal the parts are."""
    total = {"kl_sum": sum(mean * count for mean, count in parts), "tokens_count": sum(count for _, count in parts)}
    tokens = [mean for mean, count in parts for _ in range(count)]
    assert ratios(total)["kl"] == pytest.approx(sum(tokens) / len(tokens), abs=1e-9)


def test_one_line_per_step(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.log("r1_zero", 0, {"reward": 0.25, "time/step_s": 1.5, "length": 30})
        assert len(lines(tmp_path)) == 1  # flushed while open
        log.log("r1_zero", 1, {"reward": 0.5})
    assert json.loads(lines(tmp_path)[0]) == {
        "stage": "r1_zero",
        "step": 0,
        "r1_zero/reward": 0.25,
        "r1_zero/length": 30.0,
        "time/step_s": 1.5,
    }
    assert [line["r1_zero/reward"] for line in read_metrics(tmp_path)] == [0.25, 0.5]


def test_lines_do_not_depend_on_the_order_of_values(tmp_path: Path) -> None:
    for name, values in (("a", {"kl": 1.0, "reward": 2.0}), ("b", {"reward": 2.0, "kl": 1.0})):
        with MetricsLog(tmp_path / name, tensorboard=False) as log:
            log.log("rl_1", 0, values)
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


def test_steps_increase_within_a_stage(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.log("r1_zero", 3, {"reward": 0.0})
        log.log("sft_1", 0, {"loss": 0.0})
        with pytest.raises(ValueError, match="truncate"):
            log.log("r1_zero", 3, {"reward": 0.0})
    with MetricsLog(tmp_path, tensorboard=False) as log, pytest.raises(ValueError, match="truncate"):
        log.log("r1_zero", 2, {"reward": 0.0})


def test_refuses_what_is_not_a_number(tmp_path: Path) -> None:
    import torch

    with MetricsLog(tmp_path, tensorboard=False) as log, pytest.raises(TypeError, match=r"item\(\)"):
        log.log("r1_zero", 0, {"reward": torch.tensor(1.0)})  # type: ignore[dict-item]
    assert lines(tmp_path) == []


@given(logged=st.integers(0, 6), resumed=st.integers(0, 7))
def test_resuming_repeats_steps_without_a_trace(
    tmp_path_factory: pytest.TempPathFactory, logged: int, resumed: int
) -> None:
    """A run that was killed after any step and resumed at any earlier one leaves the file of a run that was not."""
    resumed = min(resumed, logged)
    whole, killed = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("killed")
    for directory in (whole, killed):
        with MetricsLog(directory, tensorboard=False) as log:
            log.log("base", 0, {"accuracy": 0.2})
            for step in range(7 if directory == whole else logged):
                log.log("rl_1", step, {"reward": step / 7})
    with MetricsLog(killed, tensorboard=False) as log:
        log.truncate("rl_1", resumed)
        for step in range(resumed, 7):
            log.log("rl_1", step, {"reward": step / 7})
    assert lines(killed) == lines(whole)


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "rl_1", "step": 0, "rl_1/reward": 1.0}\n{"stage": "rl_1", "st', encoding="utf-8")
    assert len(read_metrics(path)) == 1
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.log("rl_1", 1, {"reward": 2.0})
    assert [line["step"] for line in read_metrics(path)] == [0, 1]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\nnonsense\n{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path)


def test_not_finite_values_survive_in_strict_json(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.log("rl_1", 0, {"kl": math.nan, "ratio_max": math.inf, "low": -math.inf})

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    json.loads(lines(tmp_path)[0], parse_constant=refuse)
    line = read_metrics(tmp_path)[0]
    assert math.isnan(line["rl_1/kl"])
    assert (line["rl_1/ratio_max"], line["rl_1/low"]) == (math.inf, -math.inf)


def test_tensorboard_has_one_run_per_stage_and_purges_only_the_resumed_one(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path) as log:
        for step in range(4):
            log.log("r1_zero", step, {"reward": step})
            log.log("rl_1", step, {"reward": step})
    with MetricsLog(tmp_path) as log:
        log.truncate("rl_1", 2)
        log.log("rl_1", 2, {"reward": 20.0})
    events = {}
    for stage in ("r1_zero", "rl_1"):
        accumulator = EventAccumulator(str(tmp_path / "tensorboard" / stage))
        accumulator.Reload()
        events[stage] = [(event.step, event.value) for event in accumulator.Scalars("reward")]
    assert events == {"r1_zero": [(0, 0), (1, 1), (2, 2), (3, 3)], "rl_1": [(0, 0), (1, 1), (2, 20)]}
