"""The GRPO loop on a random two-layer model: what a step trains on, off-policy updates, exact resume."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_run import loop, rl_config, text_of
from tiny_run import ScriptedEngine, math_prompt, open_context, save_model, scored, without_times

from r1fast.checkpoint import read_state
from r1fast.config import Config
from r1fast.context import RunContext, read_lines
from r1fast.metrics import read_metrics
from r1fast.records import Batch, Prompt, Rollout, ScoredRollout
from r1fast.reference import CopiedReference
from r1fast.rollout.engine import RolloutEngine
from r1fast.stages import rl
from r1fast.stages.minibatches import as_sequence
from r1fast.stages.rl import RLLoop, run_rl, with_variance
from r1fast.stop import Stopped


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


# options, the step at which the process is killed, the step whose state is there: what follows it is repeated
RESUMED: dict[str, tuple[dict[str, Any], int, int]] = {
    "on-policy": ({}, 3, 2),
    "before the first state": ({}, 1, 0),
    "two updates a rollout": ({"rl__updates_per_rollout": 2, "run__save_every_steps": 1}, 2, 2),
    "bfloat16 with masters": ({"run__dtype": "bfloat16"}, 3, 2),
}


def test_a_group_has_the_advantages_of_grpo(model: Path, tmp_path: Path) -> None:
    looped = loop(rl_config(model, rewards__math__language_any=0.0), tmp_path)
    looped.engine = ScriptedEngine(lambda prompt, n: text_of(prompt, n == 0))  # type: ignore[assignment]
    found, drawn = looped._collect()
    assert found == drawn
    assert len(found) == 4 * 4 and looped.cursor == 4
    rewards = torch.tensor([item.reward for item in found[:4]])  # accuracy + 0.2 format
    assert rewards.tolist() == pytest.approx([1.2, 0.2, 0.2, 0.2])
    expected = (rewards - rewards.mean()) / rewards.std()
    for start in range(0, 16, 4):
        group = found[start : start + 4]
        assert len({item.rollout.prompt.id for item in group}) == 1
        assert [item.advantage for item in group] == pytest.approx(expected.tolist())


def test_a_prompt_that_an_epochs_end_repeats_is_sampled_once(model: Path, tmp_path: Path) -> None:
    looped = loop(rl_config(model, data__num_train=5, rl__prompts_per_step=4), tmp_path)
    engine = ScriptedEngine(text_of)
    looped.engine = engine  # type: ignore[assignment]
    for _ in range(10):
        looped._collect()
    assert looped.cursor == 40
    assert all(len(set(ids)) == len(ids) for ids, _, _ in engine.calls)
    assert any(len(ids) < 4 for ids, _, _ in engine.calls)
    assert len({sampling.visit for *_, sampling in engine.calls}) == 10  # a revisited prompt draws anew


def with_advantages(*values: float) -> list[ScoredRollout]:
    return [replace(scored(math_prompt(str(n)), "7"), advantage=value) for n, value in enumerate(values)]


def test_groups_with_variance_are_kept_whole() -> None:
    items = with_advantages(1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.5, -0.5, 0.0)
    kept = with_variance(items, 3)
    assert [item.rollout.prompt.id for item in kept] == ["0", "1", "2", "6", "7", "8"]


@pytest.mark.parametrize(("updates", "count"), [(1, 8), (2, 8), (3, 8), (4, 9), (4, 6)])
def test_minibatches_partition_the_rollout(model: Path, tmp_path: Path, updates: int, count: int) -> None:
    looped = loop(rl_config(model, rl__updates_per_rollout=updates), tmp_path)
    items = with_advantages(*(float(n + 1) for n in range(count)))
    tokens = [replace(i.rollout.prompt, token_ids=(5, 6)) for i in items]
    items = [
        replace(
            item,
            rollout=replace(
                item.rollout,
                prompt=prompt,
                token_ids=torch.tensor([7, 2]),
                logp=torch.zeros(2),
                log_kept_mass=torch.zeros(2),
            ),
        )
        for item, prompt in zip(items, tokens, strict=True)
    ]
    minibatches = looped._minibatches(items)
    advantages = [[float(a) for batch in part.batches for a in batch.advantage] for part in minibatches]
    assert len(minibatches) == updates
    assert sorted(a for part in advantages for a in part) == [float(n + 1) for n in range(count)]
    sizes = [len(part) for part in advantages]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("aggregate", ["sequence_mean", "token_mean", "constant"])
def test_skipping_groups_of_equal_rewards_leaves_the_gradient_as_it_is(
    model: Path, tmp_path: Path, aggregate: str
) -> None:
    """Half of the groups are all wrong: without KL they have no gradient, and the denominator still counts them."""
    trained, tokens, norms = [], [], []
    for zero_variance in ("keep", "skip"):
        config = rl_config(
            model,
            rl__zero_variance=zero_variance,
            rl__dev_every_steps=0,
            loss__kl="none",
            loss__aggregate=aggregate,
            rewards__math__language_any=0.0,
            optimizer__max_grad_norm=0.0,
            loss__correct_gap=0.0,  # the log-probs of this test are nobody's
            loss__stop_gap=0.0,
        )
        looped = loop(config, tmp_path / zero_variance)
        useful = {prompt.id for prompt in looped.prompts.take(0, 2)}
        engine = ScriptedEngine(lambda prompt, n, useful=useful: text_of(prompt, n % 2 if prompt.id in useful else 0))
        encode, submit = looped.policy.tokenizer.encode, looped.scorer.submit

        def submit_with_tokens(rollouts: list[Rollout], encode: Any = encode, submit: Any = submit) -> Any:
            ids = [torch.tensor(encode(rollout.text)) for rollout in rollouts]
            zeros = [torch.zeros(len(tokens)) for tokens in ids]
            numbered = zip(rollouts, ids, zeros, strict=True)
            return submit([replace(r, token_ids=i, logp=z, log_kept_mass=z) for r, i, z in numbered])

        looped.engine, looped.scorer.submit = engine, submit_with_tokens  # type: ignore[assignment,method-assign]
        looped._rollout_and_update()
        line = looped.history[-1]
        norms.append(line["grad_norm"])
        tokens.append(line["packed_tokens_count"])
        trained.append(looped.policy.module.state_dict())
    assert norms[0] > 0 and norms[1] == pytest.approx(norms[0], rel=1e-5)
    assert tokens[1] < 0.7 * tokens[0]
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-3, atol=2e-4)  # Adam's first step is near a sign


def test_a_sequence_is_what_was_sampled() -> None:
    item = replace(scored(replace(math_prompt(), token_ids=(5, 6, 7)), "7"), advantage=0.5)
    rollout = replace(item.rollout, token_ids=torch.tensor([9, 2]), logp=torch.tensor([-1.0, -2.0]))
    sequence = as_sequence(replace(item, rollout=rollout))
    assert sequence.token_ids.tolist() == [5, 6, 7, 9, 2]
    assert (sequence.num_prompt_tokens, sequence.advantage) == (3, 0.5)
    assert sequence.rollout_logp is not None and sequence.rollout_logp.tolist() == [-1.0, -2.0]


def test_later_updates_use_the_log_probs_before_the_first(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = rl_config(model, rl__updates_per_rollout=2, rl__dev_every_steps=0, rl__lr=2e-2)
    looped = loop(config, tmp_path)
    given: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    step = looped.trainer.step

    def spy(batches: list[Batch], *, old_logp: list[torch.Tensor], **options: Any) -> dict[str, float]:
        given.append((old_logp, rl.score(looped.policy, batches, temperature=1.0)))
        return step(batches, old_logp=old_logp, **options)

    monkeypatch.setattr(looped.trainer, "step", spy)
    looped._rollout_and_update()
    assert looped.step == 2 and looped.policy.version == 2
    (first_old, first_now), (second_old, second_now) = given
    assert all(torch.equal(a, b) for a, b in zip(first_old, first_now, strict=True))  # still on-policy
    moved = torch.cat(second_now) - torch.cat(second_old)
    assert moved.abs().max() > 1e-3
    first, second = read_metrics(tmp_path)
    assert first["r1_zero/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert second["r1_zero/ratio_mean"] == pytest.approx(float(moved.exp().mean()), rel=1e-5)
    assert "r1_zero/reward" in first and "r1_zero/reward" not in second  # the rollout is counted once


def test_an_on_policy_update_needs_no_old_log_probs(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looped = loop(rl_config(model, rl__dev_every_steps=0), tmp_path)
    step, olds = looped.trainer.step, []

    def spy(batches: list[Batch], **options: Any) -> dict[str, float]:
        olds.append(options["old_logp"])
        return step(batches, **options)

    monkeypatch.setattr(looped.trainer, "step", spy)
    looped._rollout_and_update()
    assert olds == [None]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Make the process die, as it were, once `steps` steps are done."""

    def arrange(steps: int) -> None:
        update = RLLoop._rollout_and_update

        def stopping(self: RLLoop) -> None:
            if self.step >= steps:
                raise KeyboardInterrupt
            update(self)

        monkeypatch.setattr(RLLoop, "_rollout_and_update", stopping)

    yield arrange


def weights(context: RunContext) -> dict[str, torch.Tensor]:
    return context.load("r1_zero").module.state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def interrupted(config: Config, directory: Path, stop_after: Any, steps: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run until `steps` steps are done; returns the step of the saved state."""
    with monkeypatch.context():
        stop_after(steps)
        with open_context(config, directory) as parts, pytest.raises(KeyboardInterrupt):
            run_rl(parts, "r1_zero")
        monkeypatch.undo()
    found = parts.state_folder("r1_zero").newest()
    return found[0] if found else 0


@pytest.mark.parametrize(("options", "killed_at", "saved"), RESUMED.values(), ids=RESUMED)
def test_a_resumed_stage_is_bitwise_the_uninterrupted_one(
    model: Path,
    tmp_path: Path,
    stop_after: Any,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    killed_at: int,
    saved: int,
) -> None:
    config = rl_config(model, **options)
    with open_context(config, tmp_path / "whole") as whole:
        result = run_rl(whole, "r1_zero")
    assert interrupted(config, tmp_path / "parts", stop_after, killed_at, monkeypatch) == saved
    with open_context(config, tmp_path / "parts") as parts:
        assert run_rl(parts, "r1_zero") == result
    lines = [without_times(read_metrics(context.run_dir)) for context in (whole, parts)]
    assert [line["step"] for line in lines[0]] == [0, 1, 2, 3, 4]
    assert lines[0] == lines[1]
    assert lines[0][1]["r1_zero/zero_variance"] < 1.0 and lines[0][3]["r1_zero/kl"] > 0.0
    assert same(weights(whole), weights(parts))
    assert not same(weights(whole), whole.load("base").module.state_dict())
    samples = [read_lines(context.directory("r1_zero") / "samples.jsonl") for context in (whole, parts)]
    assert samples[0] == samples[1]
    rollouts = [step for step in (1, 2, 3, 4) if (step - 1) % config.rl.updates_per_rollout == 0]
    assert [row["step"] for row in samples[0]] == [step for step in rollouts for _ in range(4)]


def test_all_that_a_later_step_needs_is_restored(
    model: Path, tmp_path: Path, stop_after: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counters, what was said once, the last dev reading and the history that stalls are diagnosed from."""
    config = rl_config(model)
    assert interrupted(config, tmp_path, stop_after, 2, monkeypatch) == 2
    first = RLLoop(open_context(config, tmp_path), "r1_zero")
    assert first._resume()
    assert (first.step, first.trainer.num_steps, first.policy.version) == (2, 2, 2)
    assert first.cursor == 8 and first.last_dev == {key: first.history[1][f"r1_zero/{key}"] for key in first.last_dev}
    assert [line["step"] for line in first.history] == [1, 2] and "dev/accuracy" in first.last_dev
    assert first.reference is not None and first.reference.version == 0
    first.warned.add("the reward does not rise")
    first.progress.save(2, first._state(first._positions()))
    second = RLLoop(open_context(config, tmp_path), "r1_zero")
    assert second._resume() and second.warned == {"the reward does not rise"}


def test_a_rollout_that_is_stopped_is_given_up(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the first: its state is that of step 0, and the dev reading before it is not repeated."""
    config = rl_config(model)
    groups = RolloutEngine.groups

    def terminated(self: RolloutEngine, prompts: list[Prompt], *rest: Any) -> Any:
        if rest[1].stage == "r1_zero":
            os.kill(os.getpid(), signal.SIGTERM)
        return groups(self, prompts, *rest)

    with monkeypatch.context() as patched, open_context(config, tmp_path) as context:
        patched.setattr(RolloutEngine, "groups", terminated)
        with context.stop.listening(), pytest.raises(Stopped), context.stop.held():
            run_rl(context, "r1_zero")
        found = context.state_folder("r1_zero").newest()
    assert found is not None and found[0] == 0
    state = read_state(found[1])
    assert (state["step"], state["cursor"], state["trainer"]["num_steps"]) == (0, 0, 0)
    written = found[1].stat().st_mtime_ns
    with monkeypatch.context() as patched, open_context(config, tmp_path) as context:
        patched.setattr(RolloutEngine, "groups", terminated)
        with context.stop.listening(), pytest.raises(Stopped), context.stop.held():
            run_rl(context, "r1_zero")
    assert found[1].stat().st_mtime_ns == written  # it is there already
    with open_context(config, tmp_path) as context:
        run_rl(context, "r1_zero")
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3, 4]


def test_the_reference_is_refreshed(model: Path, tmp_path: Path) -> None:
    looped = loop(rl_config(model, rl__dev_every_steps=0, rl__reference_refresh_steps=2), tmp_path)
    assert isinstance(looped.reference, CopiedReference)
    start = {name: value.clone() for name, value in looped.reference.policy.module.state_dict().items()}
    looped._rollout_and_update()
    assert same(start, looped.reference.policy.module.state_dict())
    looped._rollout_and_update()
    assert same(looped.policy.module.state_dict(), looped.reference.policy.module.state_dict())
