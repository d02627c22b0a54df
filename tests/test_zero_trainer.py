"""DeepSpeed's ZeRO against the trainer without it: same metrics, same weights, and saved states that either reads."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_groups
from tiny_model import random_sequences, tiny_policy
from torch import Tensor

from r1fast.config import OptimizerConfig
from r1fast.distributed import Ranks, start
from r1fast.distributed_config import DistributedConfig
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.sharded import end_engines
from r1fast.trainer import Trainer, global_denominator
from r1fast.trainers import AnyTrainer
from r1fast.zero_trainer import ZeroTrainer

pytest.importorskip("deepspeed")
OPTIMIZER = OptimizerConfig(max_grad_norm=0.5, weight_decay=0.1)  # the norm is above 1: clipping acts
CLIP = PolicyLoss(objective="clip", kl="none", kl_coef=0.0, clip_low=0.2, clip_high=0.3, aggregate="sequence_mean")
STEPS, HALF = 4, 2
CASES = [(stage, dtype) for stage in (1, 2, 3) for dtype in (torch.float32, torch.bfloat16)]


def zero(policy: Policy, stage: int, ranks: Ranks) -> ZeroTrainer:
    return ZeroTrainer(policy, OPTIMIZER, DistributedConfig(engine="deepspeed", zero_stage=stage), ranks=ranks)


def train(trainer: AnyTrainer, steps: range, ranks: Ranks) -> list[dict[str, float]]:
    """Odd numbers of sequences in small micro-batches: the ranks have different numbers of them."""
    metrics = []
    for step in steps:
        batches = pack(ranks.shard(random_sequences(9, seed=step)), micro_batch_tokens=90)
        denominator = global_denominator("sequence_mean", batches, ranks)
        metrics.append(trainer.step(batches, loss=CLIP, denominator=denominator, lr=1e-3))
    return metrics


def flat(policy: Policy) -> Tensor:
    return torch.cat([parameter.detach().float().flatten() for parameter in policy.module.parameters()])


def state_of(trainer: AnyTrainer) -> dict[str, Any]:
    """A copy, for the trainer's tensors are the live ones: tensors that are one stay one, as in a file."""
    return copy.deepcopy(trainer.state_dict())


def _rank_main(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    ranks = start("cpu")
    saved = torch.load(directory / "half.pt")
    results: dict[str, Any] = {}
    for stage, dtype in CASES:
        policy = tiny_policy(seed=rank, dtype=dtype)  # unequal on purpose: ranks start from rank 0's
        trainer = zero(policy, stage, ranks)
        metrics = train(trainer, range(HALF), ranks)
        state = state_of(trainer)
        metrics += train(trainer, range(HALF, STEPS), ranks)
        results[f"{stage} {dtype}"] = (metrics, flat(policy), state, policy.version)
        if dtype == torch.float32:  # what one process without DeepSpeed has saved
            policy = tiny_policy(seed=7)
            trainer = zero(policy, stage, ranks)
            trainer.load_state_dict(saved)
            results[f"{stage} resumed"] = train(trainer, range(HALF, STEPS), ranks), flat(policy)
    policy = tiny_policy()
    trainer = zero(policy, 2, ranks)
    before = flat(policy)

    def refuse(sums: dict[str, float]) -> None:
        raise RuntimeError(f"loss {sums['loss_sum']}")

    batches = pack(ranks.shard(random_sequences(9, seed=0)), micro_batch_tokens=90)
    denominator = global_denominator("sequence_mean", batches, ranks)
    with pytest.raises(RuntimeError, match="loss"):
        trainer.step(batches, loss=CLIP, denominator=denominator, lr=1e-3, check=refuse)
    assert torch.equal(flat(policy), before) and policy.version == 0
    results["after a refusal"] = train(trainer, range(STEPS), ranks), flat(policy)
    torch.save(results, directory / f"rank{rank}.pt")
    ranks.shutdown()


def test_zero_trains_saves_and_resumes_like_one_process(tmp_path: Path) -> None:
    alone: dict[torch.dtype, tuple[list[dict[str, float]], Tensor]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        policy = tiny_policy(dtype=dtype)
        trainer = Trainer(policy, OPTIMIZER)
        metrics = train(trainer, range(HALF), Ranks())
        if dtype == torch.float32:
            torch.save(state_of(trainer), tmp_path / "half.pt")
        alone[dtype] = metrics + train(trainer, range(HALF, STEPS), Ranks()), flat(policy)
    run_groups([(2, _rank_main)], tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for stage, dtype in CASES:
        metrics, weights, state, version = first[f"{stage} {dtype}"]
        assert version == STEPS and torch.equal(weights, second[f"{stage} {dtype}"][1])
        assert metrics == second[f"{stage} {dtype}"][0]
        # bfloat16: gradients are summed over the ranks in bfloat16, ours in float32
        share = 1e-5 if dtype == torch.float32 else 1e-2
        for found, expected in zip(metrics, alone[dtype][0], strict=True):
            assert found == pytest.approx(expected, rel=share, abs=share)
        assert float((weights - alone[dtype][1]).norm() / weights.norm()) < (5e-6 if share == 1e-5 else 3e-3)
        if dtype == torch.float32:
            assert_same(*first[f"{stage} resumed"], alone[dtype])
            policy = tiny_policy(seed=7)  # and back: one process reads what two with ZeRO have saved
            trainer = Trainer(policy, OPTIMIZER)
            trainer.load_state_dict(state)
            assert_same(train(trainer, range(HALF, STEPS), Ranks()), flat(policy), alone[dtype])
    metrics, weights = first["after a refusal"]
    assert_same(metrics, weights, alone[torch.float32])


def assert_same(metrics: list[dict[str, float]], weights: Tensor, alone: tuple[list[dict[str, float]], Tensor]) -> None:
    for found, expected in zip(metrics, alone[0][-len(metrics) :], strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert float((weights - alone[1]).norm() / weights.norm()) < 5e-6


def _alone() -> None:
    torch.set_num_threads(1)
    policy, other = tiny_policy(), tiny_policy()
    trainer, plain = zero(policy, 2, Ranks()), Trainer(other, OPTIMIZER)
    assert_same(train(trainer, range(2), Ranks()), flat(policy), (train(plain, range(2), Ranks()), flat(other)))
    before = flat(policy)
    (batch,) = pack(random_sequences(2), micro_batch_tokens=500)
    batch.advantage[0] = float("nan")
    with pytest.raises(RuntimeError, match="nothing was updated"):
        trainer.step([batch], loss=CLIP, denominator=2.0, lr=1e-3)
    assert torch.equal(flat(policy), before) and policy.version == 2
    wrong = trainer.state_dict()
    wrong["names"] = wrong["names"][1:]
    with pytest.raises(ValueError, match="another model"):
        trainer.load_state_dict(wrong)
    del policy, trainer
    for stage, dtype in CASES:
        policy = tiny_policy(dtype=dtype)
        trainer = zero(policy, stage, Ranks())
        train(trainer, range(1), Ranks())
        left = [weakref.ref(one) for one in (policy.module, trainer, trainer.engine, trainer.engine.optimizer)]
        del policy, trainer
        end_engines()
        gc.collect()
        assert [one() for one in left] == [None] * len(left), (stage, dtype)


def test_one_process_needs_no_launcher() -> None:
    """In a process of its own, since DeepSpeed keeps groups for as long as there is one.

    And a gradient that is not finite updates nothing, and an engine that is over leaves nothing behind.
    """
    worker = multiprocessing.get_context("spawn").Process(target=_alone)
    worker.start()
    worker.join(timeout=300)
    assert worker.exitcode == 0
