"""How the figures of one stage are read; recorded runs are in test_doctor_run."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from r1fast.config import Config
from r1fast.doctor.learning import read_evaluation, read_limit, read_reward_models, read_rl, read_sft, read_yield
from r1fast.doctor.line import Line
from r1fast.options import parse

CONFIG = parse([]).config
Curve = Callable[[float], float]
HEALTHY: Mapping[str, float] = {
    **{"format": 0.9, "zero_variance": 0.2, "truncated": 0.02, "length": 30.0, "kl": 0.01, "entropy": 0.4},
    **{"logp_gap": 1e-7, "grad_norm": 0.3, "clip_low": 0.0, "clip_high": 0.0, "loss": 0.0, "lr": 5e-4},
}


def curves(stage: str, count: int, **given: float | Curve) -> list[dict[str, Any]]:
    """Lines of a stage: each quantity a number, or a function of the share of the stage that is done, with noise."""
    rng = random.Random(0)
    lines = []
    for step in range(1, count + 1):
        done = (step - 1) / max(1, count - 1)
        values = {k: (v(done) if callable(v) else v) * (1 + rng.uniform(-0.02, 0.02)) for k, v in given.items()}
        lines.append({"stage": stage, "step": step, **{f"{stage}/{key}": value for key, value in values.items()}})
    return lines


def rl(count: int = 40, view: Config | None = None, **given: float | Curve) -> list[Line]:
    learning: dict[str, float | Curve] = {"reward": lambda x: 0.3 + 0.6 * x, "accuracy": lambda x: 0.2 + 0.6 * x}
    lines = curves("r1_zero", count, **{**HEALTHY, **learning, **given})
    return list(read_rl("r1_zero", lines, view or CONFIG.for_stage("r1_zero")))


def test_a_stage_that_learns_is_one_line_of_figures() -> None:
    (line,) = rl()
    assert line.status == "ok" and line.name == "r1_zero"
    assert line.value.startswith("40 rollouts: reward 0.35") and "accuracy 0.25" in line.value


def test_a_plateau_after_the_rise_is_no_fault() -> None:
    (line,) = rl(reward=lambda x: min(0.9, 0.3 + 2 * x), accuracy=lambda x: min(0.8, 0.2 + 2 * x))
    assert line.status == "ok"


def test_a_solved_task_need_not_rise_and_may_have_equal_groups() -> None:
    (line,) = rl(reward=1.0, accuracy=0.97, zero_variance=0.9)
    assert line.status == "ok"


def test_no_rise_fails_and_names_causes_or_says_that_there_are_none() -> None:
    flat, cause = rl(reward=0.3, accuracy=0.2, zero_variance=0.85)
    assert flat.status == cause.status == "fail"
    assert flat.value == "the reward did not rise: 0.299 -> 0.300 over 40 rollouts (within its noise, 0.004)"
    assert "85% of the groups have equal rewards" in cause.value
    _, none = rl(reward=0.3, accuracy=0.2)
    assert none.value.startswith("none of the usual causes shows")


def test_a_cost_of_a_stage_that_learns_is_a_warning() -> None:
    (line,) = rl(truncated=0.4)
    assert line.status == "warn" and line.value.startswith("length hits the limit in 4")


def test_reward_without_accuracy() -> None:
    (line,) = rl(accuracy=0.1)
    assert line.status == "fail"
    assert line.value == "the reward rose from 0.35 to 0.85 while accuracy stayed at 0.10 -> 0.10"
    assert "belong to the questions" in line.fix


def test_what_follows_from_a_policy_that_runs_away_is_not_blamed() -> None:
    found = rl(accuracy=0.1, kl=lambda x: 3 * x, truncated=0.5, zero_variance=0.9, format=0.1)
    assert [line.value.split(" ")[0] for line in found] == ["the", "KL"]
    assert found[0].value.startswith("the reward rose from") and found[0].fix == ""


def test_an_entropy_bonus_is_blamed_where_there_is_one() -> None:
    (line,) = rl(entropy=lambda x: 0.5 + 3 * x)
    assert line.value.endswith("the policy becomes random; lower lr")
    view = CONFIG.for_stage("r1_zero")
    (line,) = rl(view=replace(view, loss=replace(view.loss, entropy_coef=0.5)), entropy=lambda x: 0.5 + 3 * x)
    assert line.value.endswith("the policy becomes random; lower entropy_coef (it is 0.5)")


def test_a_format_that_is_yet_to_be_learned_and_tight_clipping_are_no_fault_of_a_stage_that_learns() -> None:
    (line,) = rl(format=0.3, accuracy_any=0.5, grad_norm=50.0)
    assert line.status == "ok"
    assert ["clipped" in line.value for line in rl(reward=0.3, accuracy=0.2, grad_norm=50.0)] == [False, True]


def test_few_rollouts_with_many_updates_are_read_for_what_is_wrong() -> None:
    lines = curves("r1_zero", 30, **{**HEALTHY, "clip_low": 0.3, "reward": 0.3})
    for number, line in enumerate(lines):
        if number % 5:
            del line["r1_zero/reward"]
    few, clipped = read_rl("r1_zero", lines, CONFIG.for_stage("r1_zero"))
    assert few.status == "-" and clipped.status == "fail"
    assert "30% of the tokens are clipped and have no gradient in the last of 5 updates" in clipped.value


def test_accuracy_that_was_better_before() -> None:
    (line,) = rl(accuracy=lambda x: 0.8 - abs(x - 0.5), reward=lambda x: 0.3 + x)
    assert line.status == "fail"
    assert line.value == "accuracy fell from 0.75 (around rollout 21) to 0.39 at the end"


def test_what_is_no_number_comes_alone() -> None:
    (line,) = rl(kl=lambda x: math.nan if x == 1.0 else 0.1, reward=0.1)
    assert line.status == "fail" and line.value.startswith("kl is nan")


def test_few_rollouts_are_not_judged() -> None:
    (line,) = rl(count=7, reward=0.0)
    assert (line.status, line.value) == ("-", "rollouts: 7, too few to say how it learns")


def test_a_reward_is_not_compared_over_a_change_of_its_weights() -> None:
    """At step 20 another reward joins, and the sum is a smaller one; within each part it rises."""

    def reward(done: float) -> float:
        return 2.0 + done if done < 0.5 else 0.5 + done

    assert rl(reward=reward)[0].status == "fail"
    view = replace(CONFIG.for_stage("r1_zero"), rewards={"math": {"accuracy": 1.0, "format": ((0, 0.2), (20, 0.0))}})
    assert [line.status for line in rl(view=view, reward=reward)] == ["ok"]
    late = replace(view, rewards={"math": {"accuracy": 1.0, "format": ((0, 0.2), (36, 0.0))}})  # too few came after
    assert rl(view=late, reward=lambda x: 0.3 + x)[0].value.startswith("40 rollouts")


def sft(count: int, loss: Curve, result: Mapping[str, Any] | None = None) -> Line:
    lines = curves("sft_1", count, loss=loss, grad_norm=0.1, lr=1e-3)
    (line,) = read_sft("sft_1", lines, result, CONFIG.for_stage("sft_1"))
    return line


@pytest.mark.parametrize(
    ("loss", "status", "value"),
    [
        (lambda x: 0.3 - 0.15 * x, "ok", "loss 0.29"),
        (lambda x: 0.3 + 0.2 * x, "fail", "the loss rose: 0.3"),
        (lambda x: 0.3, "fail", "the loss did not fall: 0.3"),
        (lambda x: 0.3 - 0.299 * x, "warn", "the examples are learned by heart, every example seen 80 times"),
        (lambda x: 2.0 if 0.45 < x < 0.5 else 0.3 - 0.15 * x, "warn", "but it was 2.0"),
        (lambda x: math.nan if x == 1.0 else 0.3, "fail", "loss is nan"),
    ],
)
def test_supervised_stages(loss: Curve, status: str, value: str) -> None:
    line = sft(40, loss, {"examples": 32})
    assert line.status == status and value in line.value
    assert bool(line.fix) == (status != "ok" and "nan" not in value)


def test_few_supervised_steps_are_not_judged() -> None:
    assert sft(9, lambda x: 0.3).status == "-"


def reward_models(loss: Curve, right: float, held_out: float | None) -> Line:
    lines = curves("reward_models", 40, helpful_loss=loss, helpful_accuracy=right)
    result = None if held_out is None else {"pair_accuracy": held_out}
    (line,) = read_reward_models("reward_models", lines, result)
    return line


def test_reward_models() -> None:
    good = reward_models(lambda x: 0.69 - 0.4 * x, 0.87, 0.86)
    assert good.status == "ok" and "87% right in training, 86% on held-out data" in good.value
    assert reward_models(lambda x: 0.69 - 0.4 * x, 0.87, None).status == "ok"
    coin = reward_models(lambda x: 0.70, 0.5, 0.5)
    assert coin.status == "fail" and "a coin has 0.693 and 50%" in coin.value and "lr" in coin.fix
    by_heart = reward_models(lambda x: 0.69 - 0.68 * x, 1.0, 0.7)
    assert by_heart.status == "warn" and "by heart" in by_heart.fix


def test_yields() -> None:
    ok = read_yield("cold_start", {"samples": 2048, "yield/kept": 507, "yield/wrong": 327})
    assert (ok.status, ok.value) == ("ok", "507 of 2,048 samples kept")
    poor = read_yield("rejection", {"samples": 1000, "yield/kept": 20, "yield/wrong": 900, "yield/duplicate": 80})
    assert poor.status == "warn" and poor.value == "20 of 1,000 samples kept, 90% dropped as 'wrong'"
    smoke = read_yield("cold_start", {"samples": 256, "yield/kept": 11, "yield/wrong": 226}, judged=False)
    assert (smoke.status, smoke.fix) == ("-", "") and "11 of 256 samples kept, 88% dropped as 'wrong'" in smoke.value


def test_a_sampling_stage_with_a_limit_below_what_its_model_writes() -> None:
    lines = curves("r1_zero", 20, length=lambda x: 10 + 20 * x)
    (line,) = read_limit("cold_start", 16, "r1_zero", lines)
    assert (line.status, line.fix) == ("fail", "raise cold_start.max_tokens")
    assert line.value == "max_tokens = 16, but completions of r1_zero have 27 tokens: most are cut off"
    assert (
        list(read_limit("cold_start", 64, "r1_zero", lines)) == list(read_limit("cold_start", 1, "r1_zero", [])) == []
    )


def row(value: float, **more: float) -> dict[str, Any]:
    return {"pass@1": value, "pass@1_ci": [value - 0.02, value + 0.02], "truncated": 0.0, **more}


def test_evaluations() -> None:
    good = list(read_evaluation("evaluation", {"base": row(0.2), "r1_zero": row(0.9), "sft_1": row(0.88)}))
    assert [(line.status, line.value) for line in good] == [("ok", "pass@1: base 0.200, r1_zero 0.900, sft_1 0.880")]
    worse, cut = read_evaluation("evaluation", {"sft_2": row(0.9), "r1": row(0.8, truncated=0.3)})
    assert worse.status == "fail"
    assert worse.value == "r1 has pass@1 0.800, sft_2, from which it was trained, 0.900"
    assert cut.status == "warn" and cut.value.startswith("r1: 30% of the answers hit the length limit")
    noise = list(read_evaluation("evaluation", {"sft_2": row(0.9), "r1": row(0.87)}))
    assert [line.status for line in noise] == ["ok"]
