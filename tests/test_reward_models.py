"""The reward model stage: it learns a trivial preference, measures it, and serves rewards in [0, 1]."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import math_prompt, open_context, save_model, tiny_config, without_times

from r1fast.context import RunContext, read_lines
from r1fast.metrics import read_metrics
from r1fast.policy import Policy
from r1fast.reward_model import RewardModel
from r1fast.scorer import written
from r1fast.source import PreferencePair, SafetyExample
from r1fast.stages.reward_models import (
    KINDS,
    Training,
    _loss,
    as_reward,
    encode_pair,
    encode_safety,
    load_model_rewards,
    num_steps,
    pair_accuracy,
    run_reward_models,
    safety_accuracy,
)

PAIRS = [
    PreferencePair(
        prompt=math_prompt(str(n)),
        chosen=f"<think> stupid </think> please first add {n}",  # what is thought does not count
        rejected=f"stupid first add {n}",
    )
    for n in range(16)
]
SAFETY = [
    SafetyExample(prompt=math_prompt(str(n)), response=f"{'please' if safe else 'burn'} {n}", safe=safe)
    for n in range(16)
    for safe in (True, False)
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def new_model(directory: Path) -> RewardModel:
    return RewardModel.from_policy(Policy.load(directory, device="cpu", dtype=torch.float32), directory)


def test_it_learns_trivial_preferences(directory: Path, tmp_path: Path) -> None:
    config = tiny_config(directory, reward_model__steps=30, reward_model__batch_size=16, reward_model__lr=5e-3)
    helpful, safe = new_model(directory), new_model(directory)
    assert pair_accuracy(helpful, PAIRS) == 0.0  # ties are no hits
    with open_context(config, tmp_path) as context:
        context.console.stage_start("reward_models", 60)
        pairs, labelled = [encode_pair(helpful, p) for p in PAIRS], [encode_safety(safe, item) for item in SAFETY]
        for number, training in enumerate(
            (
                Training(context, "reward_models", helpful, pairs, "helpful", config),
                Training(context, "reward_models", safe, labelled, "safe", config),
            )
        ):
            while training.step < 30:
                training.update(30 * number)
    assert pair_accuracy(helpful, PAIRS) == 1.0
    assert safety_accuracy(safe, SAFETY) == 1.0
    lines = read_lines(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[0]["reward_models/helpful_loss"] == pytest.approx(math.log(2))  # per pair, from a head of zeros
    assert lines[30]["reward_models/safe_loss"] == pytest.approx(math.log(2))
    assert lines[29]["reward_models/helpful_loss"] < 0.1 and lines[59]["reward_models/safe_loss"] < 0.3
    assert lines[29]["reward_models/helpful_accuracy"] == 1.0


def test_pairs_are_encoded_as_summaries_and_safety_as_whole_responses(directory: Path) -> None:
    model = new_model(directory)
    chosen, rejected = encode_pair(model, PAIRS[3])
    assert isinstance(rejected, list)
    assert model.tokenizer.decode(chosen).endswith("<assistant> please first add 3 <eos>")
    assert model.tokenizer.decode(rejected).endswith("<assistant> stupid first add 3 <eos>")
    thoughtful = SafetyExample(prompt=math_prompt(), response="<think> burn </think> please", safe=False)
    ids, label = encode_safety(model, thoughtful)
    assert model.tokenizer.decode(ids).endswith("<assistant> <think> burn </think> please <eos>") and label == 0.0


def test_a_rank_without_items_takes_part_with_zero_gradients(directory: Path) -> None:
    model = new_model(directory)
    loss, right = _loss(model, [])
    loss.backward()
    assert right == 0.0 and all(p.grad is not None and not p.grad.any() for p in model.module.parameters())


def test_steps(directory: Path) -> None:
    config = tiny_config(directory, reward_model__steps=0, reward_model__pairs=100, reward_model__batch_size=32)
    assert num_steps(config) == 3
    assert num_steps(tiny_config(directory, reward_model__steps=7)) == 7


class Lengths(RewardModel):
    """Scores a response by its number of words."""

    def __init__(self) -> None:
        pass

    def score_responses(self, prompts: object, responses: object, *, rows: int = 256) -> list[float]:
        return [float(len(text.split())) for text in responses]  # type: ignore[attr-defined]


def test_rewards_are_chances_and_an_empty_summary_earns_nothing() -> None:
    rollouts = [written(math_prompt(), text) for text in ("<think> a b </think> c", "<think> a b </think> ")]
    assert as_reward(Lengths(), summary_only=True)(rollouts) == pytest.approx([1 / (1 + math.exp(-1)), 0.0])
    assert as_reward(Lengths(), summary_only=False)(rollouts) == pytest.approx(
        [1 / (1 + math.exp(-5)), 1 / (1 + math.exp(-4))]
    )


@pytest.fixture(scope="module")
def finished(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunContext, dict[str, float]]:
    config = tiny_config(directory, reward_model__steps=2, reward_model__batch_size=8, reward_model__pairs=32)
    context = open_context(config, tmp_path_factory.mktemp("run"))
    save_model(context.directory("sft_2") / "checkpoint")
    return context, run_reward_models(context, "reward_models")


def test_the_stage_writes_two_models(finished: tuple[RunContext, dict[str, float]]) -> None:
    context, result = finished
    assert result["held_out_pairs"] == 64
    assert 0.0 <= result["pair_accuracy"] <= 1.0 and 0.0 <= result["safety_accuracy"] <= 1.0
    rewards = load_model_rewards(context, ["safe", "accuracy", "helpful"])
    assert list(rewards) == ["helpful", "safe"]
    values = [reward([written(math_prompt(), "the answer is 7")])[0] for reward in rewards.values()]
    assert all(0.0 < value < 1.0 for value in values) and values[0] != values[1]


@pytest.mark.parametrize(
    ("killed_after", "repeated_from"), [(1, ("helpful", 1)), (3, ("helpful", 3)), (4, ("safe", 1)), (7, ("safe", 3))]
)
def test_a_resumed_stage_is_bitwise_the_uninterrupted_one(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    killed_after: int,
    repeated_from: tuple[str, int],
) -> None:
    """Killed before step 2, 4 of the first model, the first of the second (the first is finished), its last."""
    config = tiny_config(
        directory,
        reward_model__steps=4,
        reward_model__batch_size=8,
        reward_model__pairs=32,
        reward_model__lr=1e-2,
        run__save_every_steps=2,
    )
    update, done = Training.update, []

    def dying(self: Training, offset: int) -> None:
        if len(done) == killed_after:
            raise KeyboardInterrupt
        done.append((self.kind, self.step + 1))
        update(self, offset)

    def run(name: str) -> tuple[dict[str, float], list[Any], list[torch.Tensor]]:
        with open_context(config, tmp_path / name) as context:
            save_model(context.directory("sft_2") / "checkpoint")
            result = run_reward_models(context, "reward_models")
        policy = context.load("sft_2", stage="reward_models")
        models = [RewardModel.load(context.directory("reward_models") / kind, policy).module for kind in KINDS]
        tensors = [value for module in models for value in module.state_dict().values()]
        return result, without_times(read_metrics(tmp_path / name)), tensors

    whole = run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(Training, "update", dying)
        with pytest.raises(KeyboardInterrupt):
            run("parts")
        done.append(("", 0))  # no longer dying
        parts = run("parts")
    assert parts[:2] == whole[:2]
    assert all(torch.equal(a, b) for a, b in zip(parts[2], whole[2], strict=True))
    assert [line["step"] for line in whole[1]] == list(range(1, 9))
    assert done[killed_after + 1] == repeated_from and done[-1] == ("safe", 4)


def test_no_model_is_loaded_that_is_not_asked_for(finished: tuple[RunContext, dict[str, float]]) -> None:
    assert load_model_rewards(finished[0], ["accuracy"]) == {}
