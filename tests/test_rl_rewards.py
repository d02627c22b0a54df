"""Which rewards of models an RL stage loads: those that weigh something at some step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from rl_run import text_of
from tiny_run import ScriptedEngine, open_context, save_model, tiny_config

from r1fast.config import Config
from r1fast.context import RunContext
from r1fast.scorer import ModelReward
from r1fast.stages import rl
from r1fast.stages.rl import RLLoop


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def loop(config: Config, directory: Path) -> RLLoop:
    looped = RLLoop(open_context(config, directory), "r1_zero")
    looped.engine = ScriptedEngine(text_of)  # type: ignore[assignment]
    return looped


def parts(looped: RLLoop) -> set[str]:
    (first, *_), _ = looped._collect()
    return set(first.parts)


def test_what_weighs_nothing_is_not_loaded(model: Path, tmp_path: Path) -> None:
    """No stage trains the one, the other has no endpoint, and neither is needed."""
    off = {f"rewards__math__{name}": 0.0 for name in ("helpful", "judge")}
    config = tiny_config(model, pipeline__stages="base,r1_zero", **off)
    looped = loop(config, tmp_path)
    assert looped.judge is None
    assert parts(looped) == set(config.rewards["math"]) - {"helpful", "judge"}


def test_what_weighs_something_later_is_loaded_from_the_start(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(context: RunContext, names: Iterable[str], *, idles: bool) -> dict[str, ModelReward]:
        asked.append(set(names))
        return {"helpful": lambda rollouts: [0.5] * len(rollouts)}

    monkeypatch.setattr(rl, "load_model_rewards", load)
    table = {"accuracy": 1.0, "helpful": ((0, 0.0), (2, 1.0)), "safe": 0.0}
    looped = loop(replace(tiny_config(model), rewards={"math": table}), tmp_path)
    assert asked == [{"accuracy", "helpful"}]
    assert parts(looped) == {"accuracy"}
    looped.step = 2
    assert parts(looped) == {"accuracy", "helpful"}
