"""Which prompts a GRPO step draws: replaced groups, general prompts, small data sets; and what it logs of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rl_run import loop, rl_config, text_of
from tiny_run import ScriptedEngine, open_context, save_model

from r1fast.metrics import read_metrics
from r1fast.stages.rl import MAX_REFILLS, RLLoop


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_refill_replaces_groups_without_variance(model: Path, tmp_path: Path, share: float) -> None:
    looped = loop(rl_config(model, rl__zero_variance="refill", rewards__math__language_any=0.0), tmp_path)
    ids = [prompt.id for prompt in looped.context.source.prompts("train")]
    useful = {name for name in ids if ids.index(name) % 2 < 2 * share}
    engine = ScriptedEngine(lambda prompt, n: text_of(prompt, n if prompt.id in useful else 0))
    looped.engine = engine  # type: ignore[assignment]
    found, drawn = looped._collect()
    asked = [len(ids) for ids, _, _ in engine.calls]
    assert asked[0] == 4 and looped.cursor == sum(asked) and len(drawn) == 4 * sum(asked)
    if not share:
        assert asked == [4] * MAX_REFILLS
        assert len(found) == 16 and not any(item.advantage for item in found)  # the last round: the KL still acts
        return
    groups = [found[start : start + 4] for start in range(0, len(found), 4)]
    assert len(groups) == 4 or len(asked) == MAX_REFILLS
    kept = 0
    for round_ids, _, _ in engine.calls:
        assert len(round_ids) == 4 - kept
        kept += len(useful & set(round_ids))
    assert len(groups) == kept
    assert all(len({item.rollout.prompt.id for item in group}) == 1 for group in groups)


def test_a_refilled_step_logs_all_that_was_drawn(model: Path, tmp_path: Path) -> None:
    """Its groups without variance, too: of the others alone the mean reward need not rise when the policy improves."""
    config = rl_config(model, rl__zero_variance="refill", rewards__math__language_any=0.0, rl__dev_every_steps=0)
    looped = loop(config, tmp_path)
    useful = {prompt.id for prompt in looped.context.source.prompts("train")[::4]}
    engine = ScriptedEngine(lambda prompt, n: text_of(prompt, n if prompt.id in useful else 1))
    looped.engine = engine  # type: ignore[assignment]
    looped._rollout_and_update()
    (line,) = ({key.removeprefix("r1_zero/"): value for key, value in x.items()} for x in read_metrics(tmp_path))
    ids = [name for names, *_ in engine.calls for name in names]
    without = len(set(ids) - useful)
    assert line["zero_variance"] == pytest.approx(without / len(ids)) and 0 < without < len(ids)
    assert line["reward"] == pytest.approx(line["accuracy"] + 0.2 * line["format"])
    assert line["accuracy"] == pytest.approx(1 - 0.5 * (1 - line["zero_variance"]))


def test_a_small_rollout_has_fewer_updates(model: Path, tmp_path: Path) -> None:
    options = {"rl__prompts_per_step": 1, "rl__updates_per_rollout": 16, "data__num_train": 1, "rl__steps": 40}
    looped = loop(rl_config(model, **options), tmp_path)
    looped._rollout_and_update()
    assert looped.step == 4


def test_general_prompts_come_beside_the_others(model: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {f"rewards__{kind}__format": 1.0 for kind in ("general", "harmful")}
    config = rl_config(model, **options)
    rl_section = replace(config.rl, general_prompts_per_step=((0, 0), (1, 3)), steps=2)
    looped = RLLoop(open_context(replace(config, rl=rl_section, stages={}), tmp_path), "r1_zero")
    engine = ScriptedEngine(text_of)
    looped.engine = engine  # type: ignore[assignment]
    looped._collect()
    looped.step = 1
    looped._collect()
    kinds: list[Sequence[str]] = [[name.split("-")[0] for name in ids] for ids, _, _ in engine.calls]
    assert kinds == [["math"] * 4, ["math"] * 4 + ["general"] * 3]
    assert (looped.cursor, looped.general_cursor) == (8, 3)


@pytest.mark.parametrize("variance", ["keep", "refill"])
def test_general_prompts_alone_draw_anew_and_stay_alone(model: Path, tmp_path: Path, variance: str) -> None:
    options: dict[str, Any] = {f"rewards__{kind}__format": 1.0 for kind in ("general", "harmful")}
    config = rl_config(model, rl__zero_variance=variance, **options)
    rl_section = replace(config.rl, prompts_per_step=0, general_prompts_per_step=2)
    looped = RLLoop(open_context(replace(config, rl=rl_section, stages={}), tmp_path), "r1_zero")
    engine = ScriptedEngine(lambda prompt, n: text_of(prompt, 1))
    looped.engine = engine  # type: ignore[assignment]
    looped._collect()
    looped._collect()
    assert len(engine.calls) == (2 if variance == "keep" else 2 * MAX_REFILLS)
    assert {name.split("-")[0] for ids, *_ in engine.calls for name in ids} <= {"general", "harmful"}
    visits = [sampling.visit for *_, sampling in engine.calls]
    assert len(set(visits)) == len(visits)
