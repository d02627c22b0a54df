from __future__ import annotations

import math
import random
from typing import Any

import pytest

from r1fast.diagnosis import Window, causes, quantities, why_stalled

HEALTHY = {
    "accuracy": 0.4,
    "accuracy_any": 0.5,
    "format": 0.9,
    "zero_variance": 0.2,
    "truncated": 0.02,
    "length": 30.0,
    "kl": 0.002,
    "entropy": 0.7,
    "logp_gap": 1e-6,
    "grad_norm": 0.8,
    "clip_low": 0.01,
    "clip_high": 0.01,
    "loss": 0.0,
}


def run(num_steps: int = 30, rise: float = 0.0, **values: float) -> list[dict[str, Any]]:
    """Lines of a stage whose reward is noise around 0.4 plus `rise` a step, as read_metrics gives them."""
    rng = random.Random(0)
    lines = []
    for step in range(1, num_steps + 1):
        quantities = {**HEALTHY, **values, "reward": 0.4 + rise * step + rng.uniform(-0.02, 0.02)}
        line = {f"rl_1/{key}": value for key, value in quantities.items() if value is not None}
        lines.append({"stage": "rl_1", "step": step, "time/step_s": 1.0, **line})
    return lines


def test_learning_needs_no_reason() -> None:
    assert why_stalled(run(rise=0.01)) == []
    assert why_stalled(run(rise=0.01, truncated=0.5, zero_variance=0.9)) == []


def test_too_short_a_history_says_nothing() -> None:
    assert why_stalled([]) == []
    assert why_stalled(run(num_steps=7, truncated=1.0)) == []


def test_a_solved_task_is_no_stall() -> None:
    assert why_stalled(run(accuracy=0.98, zero_variance=0.9)) == []


def test_an_unexplained_stall_says_so() -> None:
    finding, only = why_stalled(run())
    assert finding.startswith("the reward does not rise: 0.4")
    assert "none of the usual causes" in only


def test_a_falling_reward_is_a_stall() -> None:
    assert "does not rise" in why_stalled(run(rise=-0.01))[0]


@pytest.mark.parametrize(
    ("values", "figures", "fix"),
    [
        ({"zero_variance": 0.8, "accuracy": 0.9}, "80% of the groups have equal rewards", "harder prompts"),
        ({"zero_variance": 0.8, "accuracy": 0.02}, "mostly all wrong, accuracy 0.02", "easier prompts"),
        ({"truncated": 0.4}, "length hits the limit in 40% of the samples (mean length 30)", "raise max_tokens"),
        ({"truncated": 0.97}, "97% of the completions never end", "eos token"),
        ({"format": 0.1, "accuracy_any": 0.6}, "only 10% of the completions have the format although 60%", "template"),
        ({"logp_gap": 0.2}, "the log-prob gap between rollout and trainer is 0.200 nats", "correction"),
        (
            {"kl": 1e-9, "lr": 1e-12},
            "the policy has hardly moved: KL to the reference is 1e-09",
            "raise lr (it is 1e-12)",
        ),
        ({"grad_norm": 12.0}, "clipped in 20 of 20 steps (median norm 12, limit 1)", "max_grad_norm"),
        (
            {"clip_low": 0.2, "clip_high": 0.2},
            "40% of the tokens are clipped and have no gradient in the last of 1 updates",
            "updates",
        ),
        ({"entropy": 0.001}, "entropy is 0.001", "temperature"),
        ({"outcome/accuracy/ok_count": 4.0, "outcome/accuracy/unparsed_count": 6.0}, "60% of the answers", "samples"),
        ({"outcome/accuracy/ok_count": 9.0, "outcome/accuracy/timeout_count": 1.0}, "failed on 10%", "timeout"),
    ],
)
def test_one_cause_alone_is_named_with_figures_and_a_fix(values: dict[str, float], figures: str, fix: str) -> None:
    reasons = why_stalled(run(**values))
    assert len(reasons) == 2
    assert figures in reasons[1]
    assert fix in reasons[1]


def test_kl_blow_up() -> None:
    history = run()
    for line in history:
        line["rl_1/kl"] = 0.001 * 1.3 ** line["step"]
    reasons = why_stalled(history)
    assert len(reasons) == 2
    assert "KL to the reference grew from 0.018 to 2.015" in reasons[1]


def grow(name: str, first: float, last: float) -> list[dict[str, Any]]:
    """A history in which one quantity changes evenly, over the rollouts that are looked at."""
    history = run()
    for number, line in enumerate(history[-20:]):
        line[f"rl_1/{name}"] = first + (last - first) * number / 19
    return history


def test_a_gap_that_grows() -> None:
    reasons = why_stalled(grow("logp_gap", 0.0, 0.06))
    assert len(reasons) == 2
    assert "log-prob gap between rollout and trainer grew from 0.008 to 0.052 nats" in reasons[1]
    assert "none of the usual" in why_stalled(grow("logp_gap", 0.014, 0.012))[1]  # bfloat16


def test_entropy_that_grows() -> None:
    reasons = why_stalled(grow("entropy", 0.5, 3.0))
    assert len(reasons) == 2
    assert "entropy grew from 0.50 to 3.00 nats a token: the policy becomes random" in reasons[1]


def test_an_end_token_that_was_lost() -> None:
    reasons = why_stalled(grow("truncated", 0.0, 1.5))
    assert len(reasons) == 2
    assert "never end (mean length 30), 20% did so at first: the policy has lost its end token" in reasons[1]


def test_shares_may_be_read_in_the_last_part_alone() -> None:
    lines = [quantities(line) for line in grow("zero_variance", 0.0, 1.0)]
    whole, recent = Window(lines, 1.0), Window(lines[-8:], 1.0)
    assert causes(whole) == []
    assert "82% of the groups have equal rewards" in causes(whole, recent)[0]


def test_several_causes_are_all_named() -> None:
    assert len(why_stalled(run(truncated=0.5, format=0.2, zero_variance=0.7))) == 4


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_reported_at_once(value: float) -> None:
    (reason,) = why_stalled(run(num_steps=2, kl=value))
    assert f"kl is {value}" in reason


def test_a_skipped_update_is_no_loss_of_weights_and_no_cause() -> None:
    for place in (0, 10, -1):
        lines = run(rise=0.01)
        for line in lines[place:]:
            line["rl_1/skipped_updates"] = 1.0
        lines[place] |= {"rl_1/loss": math.nan, "rl_1/kl": math.nan, "rl_1/grad_norm": math.inf}
        assert why_stalled(lines) == []
    flat = run()
    for line in flat:
        line["rl_1/skipped_updates"] = 1.0
    flat[-15]["rl_1/kl"] = math.nan
    flat[-15]["rl_1/skipped_updates"] = 2.0
    flat[-14:] = [{**line, "rl_1/skipped_updates": 2.0} for line in flat[-14:]]
    assert not any("nan" in reason for reason in why_stalled(flat))


def test_clipping_is_not_blamed_where_it_is_off() -> None:
    assert "none of the usual causes" in why_stalled(run(grad_norm=12.0), max_grad_norm=0.0)[1]


def test_missing_quantities_blame_nothing() -> None:
    bare = [{"stage": "rl_1", "step": step, "rl_1/reward": 0.1} for step in range(20)]
    assert len(why_stalled(bare)) == 2


def test_updates_without_a_rollout_do_not_shorten_the_window() -> None:
    """With several updates a rollout, only the first of them carries the reward."""
    history = []
    for line in run(num_steps=30):
        history += [line, *({"stage": "rl_1", "step": line["step"], "rl_1/kl": 0.002} for _ in range(15))]
    assert "over the last 20 rollouts" in why_stalled(history)[0]


def test_lines_may_come_without_the_stage() -> None:
    bare = [{key.removeprefix("rl_1/"): value for key, value in line.items()} for line in run(truncated=0.4)]
    assert why_stalled(bare) == why_stalled(run(truncated=0.4))
