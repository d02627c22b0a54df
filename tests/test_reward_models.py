"""The reward model stage: it learns a trivial preference, measures it, and serves rewards in [0, 1]."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_two
from tiny_run import math_prompt, open_context, save_model, tiny_config, without_times
from torch._C._distributed_c10d import HashStore

from r1fast import replicas
from r1fast.config import Config
from r1fast.context import RunContext, read_lines
from r1fast.distributed import Ranks, start
from r1fast.distributed_config import DistributedConfig
from r1fast.metrics import read_metrics
from r1fast.optimizers import state_tensors
from r1fast.policy import Policy
from r1fast.progress import Progress
from r1fast.reward_model import RewardModel
from r1fast.scorer import written
from r1fast.source import PreferencePair, SafetyExample
from r1fast.stages.reward_models import (
    KINDS,
    Training,
    as_reward,
    encode_pair,
    encode_safety,
    load_model_rewards,
    micro_batches,
    num_steps,
    pair_accuracy,
    run_reward_models,
    safety_accuracy,
)
from r1fast.start import open_run

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


def test_micro_batches_keep_pairs_together_and_the_order_of_what_shares_one() -> None:
    pairs: list[Any] = [([1] * n, [1] * (n + 1)) for n in (2, 9, 3, 1)]  # 5, 19, 7, 3 tokens
    assert micro_batches(pairs, 1000) == [pairs]
    assert micro_batches(pairs, 10) == [[pairs[1]], [pairs[2], pairs[3]], [pairs[0]]]
    assert micro_batches(pairs, 1) == [[pairs[n]] for n in (1, 2, 0, 3)]
    assert micro_batches([([1] * 4, 1.0), ([1] * 6, 0.0)], 10) == [[([1] * 4, 1.0), ([1] * 6, 0.0)]]
    assert micro_batches([], 10) == []


SHARED = DistributedConfig(engine="deepspeed", zero_stage=1)


@contextmanager
def training_of(
    config: Config, run_dir: Path, *, kind: str = "helpful", ranks: Ranks | None = None, state: Any = None
) -> Iterator[Training]:
    """Of the model that `config` names, from a state where there is one."""
    model = new_model(Path(config.model.path))
    items = [encode_pair(model, p) for p in PAIRS] if kind == "helpful" else [encode_safety(model, s) for s in SAFETY]
    with open_run(config, run_dir, ranks or Ranks()) as context:
        context.console.stage_start("reward_models", 4)
        training = Training(context, "reward_models", model, items, kind, config)
        training.resume(copy.deepcopy(state or {}))  # its moments become the optimizer's
        yield training


def some_steps(config: Config, run_dir: Path, steps: int, **options: Any) -> torch.Tensor:
    """All weights after them, flat."""
    with training_of(config, run_dir, **options) as training:
        return stepped(training, steps)


def stepped(training: Training, steps: int) -> torch.Tensor:
    for _ in range(steps):
        training.update(0)
    return torch.cat([parameter.detach().flatten() for parameter in training.parameters])


def assert_close(weights: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((weights - expected).norm() / expected.norm()) < 1e-5  # four steps move them by a hundredth


def step_config(directory: Path, **options: Any) -> Config:
    steps = {"reward_model__steps": 4, "reward_model__batch_size": 5, "reward_model__lr": 1e-3}
    return tiny_config(directory, **steps, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_depends_on_micro_batches_and_checkpointing_in_rounding_alone(
    directory: Path, tmp_path: Path, kind: str
) -> None:
    expected = some_steps(step_config(directory), tmp_path / "whole", 4, kind=kind)
    assert float((expected - some_steps(step_config(directory), tmp_path / "none", 0)).norm()) > 0.1
    for checkpointing in ("false", "true"):
        options = {"optimizer__micro_batch_tokens": 110, "optimizer__gradient_checkpointing": checkpointing}
        found = some_steps(step_config(directory, **options), tmp_path / checkpointing, 4, kind=kind)
        assert_close(found, expected)
        logged, whole = (read_metrics(tmp_path / name) for name in (checkpointing, "whole"))
        for line, other in zip(logged, whole, strict=True):
            for name in ("loss", "accuracy"):
                key = f"reward_models/{kind}_{name}"
                assert line[key] == pytest.approx(other[key], rel=1e-4)


def test_micro_batches_are_run_one_by_one_and_layers_again_in_backward(directory: Path, tmp_path: Path) -> None:
    for checkpointing, times in (("false", 1), ("true", 2)):
        options = {"optimizer__micro_batch_tokens": 110, "optimizer__gradient_checkpointing": checkpointing}
        tokens: list[int] = []
        with training_of(step_config(directory, **options), tmp_path / checkpointing) as training:
            layer = training.model.module.base_model.layers[0].mlp
            layer.register_forward_pre_hook(lambda _, inputs, tokens=tokens: tokens.append(inputs[0].shape[1]))
            training.update(0)
        batches = micro_batches(training.stream.take(0, 5), 110)
        assert [len(batch) for batch in batches] == [2, 2, 1]
        assert tokens == [
            sum(len(ids) for pair in batch for ids in pair)  # type: ignore[arg-type,misc]
            for batch in batches
            for _ in range(times)
        ]
        pair_accuracy(training.model, PAIRS[:2])
        assert len(tokens) == len(batches) * times + 2  # nothing to make again


def _rank_main(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    ranks, results = start("cpu"), {}
    config = step_config(directory / "model", optimizer__micro_batch_tokens=110)
    single = replace(config, reward_model=replace(config.reward_model, batch_size=1))
    alone = torch.load(directory / "half.pt")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(replicas, "BUCKET_NUMBERS", 5000)
        for name, distributed in (("whole", config.distributed), ("shared", SHARED)):
            view = replace(config, distributed=distributed)
            folder = directory / f"{name} {rank}"
            with training_of(view, folder / "half", ranks=ranks) as training:
                stepped(training, 2)
                state = copy.deepcopy(training.state_dict())
                whole = stepped(training, 2)
                numbers = sum(tensor.numel() for tensor in state_tensors(training.optimizer._inner))
            resumed = some_steps(view, folder / "resumed", 2, ranks=ranks, state=alone)
            one_item = some_steps(replace(single, distributed=distributed), folder / "one", 2, ranks=ranks)
            results[name] = whole, state, numbers, resumed, one_item
    torch.save(results, directory / f"rank{rank}.pt")
    ranks.shutdown()


def test_two_processes_train_as_one_with_moments_whole_or_shared_out(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks with unequal shares, one with none; states of one process and of two go on in either."""
    config = step_config(save_model(tmp_path / "model"), optimizer__micro_batch_tokens=110)
    with training_of(config, tmp_path / "alone") as training:
        stepped(training, 2)
        torch.save(training.state_dict(), tmp_path / "half.pt")
        expected = stepped(training, 2)
    num_moments = 2 * len(expected)
    single = replace(config, reward_model=replace(config.reward_model, batch_size=1))
    one_item = some_steps(single, tmp_path / "one", 2)
    run_two(_rank_main, tmp_path, monkeypatch)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for name in ("whole", "shared"):
        weights, state, numbers, resumed, one = first[name]
        for found, other, wanted in zip(
            (weights, resumed, one), (second[name][n] for n in (0, 3, 4)), (expected, expected, one_item), strict=True
        ):
            assert torch.equal(found, other)
            assert_close(found, wanted)
        held = numbers, second[name][2]
        assert held == (num_moments, num_moments) if name == "whole" else sum(held) == num_moments and min(held) > 0
        assert_close(some_steps(config, tmp_path / f"back from {name}", 2, state=state), expected)


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


def test_the_stage_keeps_no_weights_of_sft_2(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, made = [], RewardModel.from_policy

    def watched(policy: Policy, path: Path) -> RewardModel:
        seen.append({parameter.device.type for parameter in policy.module.parameters()})
        return made(policy, path)

    monkeypatch.setattr(RewardModel, "from_policy", watched)
    config = tiny_config(directory, reward_model__steps=1, reward_model__batch_size=2, reward_model__pairs=4)
    with open_context(config, tmp_path) as context:
        save_model(context.directory("sft_2") / "checkpoint")
        run_reward_models(context, "reward_models")
    assert seen == [{"meta"}, {"meta"}]


@pytest.mark.parametrize("shared", [False, True])
def test_rank_0_saves_alone_only_where_it_holds_all(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    offered = []
    step_done = Progress.step_done

    def watched(self: Progress, step: int, state: Any, *, alone: bool = False) -> None:
        offered.append(alone)
        step_done(self, step, state, alone=alone)

    monkeypatch.setattr(Progress, "step_done", watched)
    monkeypatch.setattr(DistributedConfig, "shares_moments", lambda self, num_processes: shared)
    config = tiny_config(directory, reward_model__steps=1, reward_model__batch_size=2, reward_model__pairs=4)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        with open_context(config, tmp_path) as context:
            save_model(context.directory("sft_2") / "checkpoint")
            run_reward_models(context, "reward_models")
    finally:
        dist.destroy_process_group()
    assert offered == [not shared] * 2


def test_no_model_is_loaded_that_is_not_asked_for(finished: tuple[RunContext, dict[str, float]]) -> None:
    assert load_model_rewards(finished[0], ["accuracy"]) == {}
