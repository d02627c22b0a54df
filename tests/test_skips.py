"""Ranks skip alike, with and without DeepSpeed, though only one of them has seen something that is not finite."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_groups
from test_zero_trainer import CLIP, OPTIMIZER, flat
from tiny_model import random_sequences, tiny_policy

from r1fast.distributed import Ranks, start
from r1fast.distributed_config import DistributedConfig
from r1fast.faults_config import FaultsConfig
from r1fast.packing import pack
from r1fast.step_guard import StepGuard
from r1fast.trainer import Trainer, global_denominator
from r1fast.trainers import AnyTrainer
from r1fast.zero_trainer import ZeroTrainer

# stage 0: without DeepSpeed
CASES = [(stage, dtype, "none") for stage in (0, 1, 2, 3) for dtype in (torch.float32, torch.bfloat16)]
CASES += [(stage, dtype, "cpu") for stage in (1, 2, 3) for dtype in (torch.float32, torch.bfloat16)]


def train(stage: int, dtype: torch.dtype, offload: Any, ranks: Ranks, bad: set[int]) -> tuple[Any, ...]:
    """Four steps; in those of `bad` a completion of rank 1 has an advantage that is not finite."""
    policy = tiny_policy(dtype=dtype)
    distributed = DistributedConfig(engine="deepspeed", zero_stage=stage, offload_optimizer=offload)
    trainer: AnyTrainer = (
        ZeroTrainer(policy, OPTIMIZER, distributed, ranks=ranks) if stage else Trainer(policy, OPTIMIZER, ranks=ranks)
    )
    guard, metrics, weights = StepGuard(FaultsConfig(), "rl_1", lambda text: None), [], []
    for step in range(4):
        batches = pack(ranks.shard(random_sequences(9, seed=step)), micro_batch_tokens=90)
        if step in bad and ranks.rank == 1:
            batches[-1].advantage[0] = math.inf if step % 2 else math.nan
        denominator = global_denominator("sequence_mean", batches, ranks)
        run = partial(trainer.step, batches, loss=CLIP, denominator=denominator, lr=1e-3)
        metrics.append(guard.update(lambda most, run=run: run(most_norm=most), step))  # type: ignore[misc]
        weights.append(flat(policy))
    return metrics, weights, guard.num_skipped, policy.version


def _rank_main(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    ranks = start("cpu")
    torch.save({case: train(*case, ranks, {1, 2}) for case in CASES}, directory / f"rank{rank}.pt")
    ranks.shutdown()


@pytest.mark.slow
def test_all_ranks_skip_what_one_of_them_has_seen(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    run_groups([(2, _rank_main)], tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for case in CASES:
        metrics, weights, num_skipped, version = first[case]
        others, other_weights, *counts = second[case]
        assert str(metrics) == str(others) and counts == [num_skipped, version] == [2, 2]  # as text: NaN
        assert all(map(torch.equal, weights, other_weights))
        assert torch.equal(weights[0], weights[1]) and torch.equal(weights[1], weights[2])
        assert not torch.equal(weights[2], weights[3]) and bool(weights[3].isfinite().all())
        assert [math.isfinite(sums["loss_sum"]) for sums in metrics] == [True, False, False, True]
        assert math.isfinite(metrics[3]["grad_norm_sum"])
