"""What runs beside a rollout of the RL stage: groups that are scored as they finish, optimizer state on the host."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from rl_run import loop, rl_config
from test_rl import same
from tiny_run import save_model, without_times

from r1fast.metrics import read_metrics
from r1fast.records import Rollout
from r1fast.rollout.engine import RolloutEngine
from r1fast.sampling import Sampling
from r1fast.schedule import at


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_groups_are_scored_as_they_finish_with_the_same_result(model: Path, tmp_path: Path) -> None:
    """The engine's own groups, in the order in which they finish, against the whole call scored at its end."""
    looped = loop(rl_config(model), tmp_path)
    prompts = looped.prompts.take(0, 4)
    found = looped._sample(prompts)
    rl = looped.config.rl
    sampling = Sampling(
        temperature=looped.temperature, top_p=1.0, max_tokens=at(rl.max_tokens, 0), stage="r1_zero", visit=0
    )
    whole = looped.scorer.score(looped.engine.generate(prompts, rl.group_size, sampling))
    assert [item.rollout.text for item in found] == [item.rollout.text for item in whole]
    assert [(item.reward, item.parts, item.outcome) for item in found] == [
        (item.reward, item.parts, item.outcome) for item in whole
    ]
    assert len({item.reward for item in found}) > 1
    looped.scorer.close()


def test_a_group_that_finished_before_a_fault_is_not_trained_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looped = loop(rl_config(model), tmp_path)
    prompts = looped.prompts.take(0, 4)
    groups, whole = looped.engine.groups, looped._sample(prompts)

    def broken(*arguments: Any) -> Iterator[list[Rollout]]:
        with closing(groups(*arguments)) as found:
            yield next(found)
            raise FloatingPointError("logits are not finite")

    with monkeypatch.context() as patched, pytest.raises(FloatingPointError):
        patched.setattr(looped.engine, "groups", broken)
        looped._sample(prompts)
    assert [item.reward for item in looped._sample(prompts)] == [item.reward for item in whole]  # nobody is busy
    looped.scorer.close()


def test_what_waits_on_the_host_while_it_generates_is_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, away = RolloutEngine.groups, []

    def look(self: RolloutEngine, *rest: Any) -> Generator[list[Rollout], None, None]:
        away.append(moving.trainer._offload.num_bytes)
        return groups(self, *rest)

    options = {"run__dtype": "bfloat16", "rl__dev_every_steps": 0, "rl__updates_per_rollout": 2}
    plain = loop(rl_config(model, **options), tmp_path / "plain")
    plain._rollout_and_update()
    plain._rollout_and_update()
    monkeypatch.setattr(RolloutEngine, "groups", look)
    moving = loop(rl_config(model, optimizer__offload_while_generating="true", **options), tmp_path / "moving")
    moving._rollout_and_update()
    moving._rollout_and_update()
    params = sum(parameter.numel() for parameter in moving.policy.module.parameters())
    assert away == [4 * params, 12 * params]  # masters; the moments come with the first step
    assert same(plain.policy.module.state_dict(), moving.policy.module.state_dict())
    assert without_times(read_metrics(tmp_path / "plain")) == without_times(read_metrics(tmp_path / "moving"))
