"""vLLM in several processes, one each or shared by a team, with weights that are whole or shared out: for real.

    OMP_NUM_THREADS=1 vllm/bin/python -m pytest tests/test_vllm_teams.py

in an environment with vLLM (the README: how to make one).
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_groups
from test_vllm_draw import PLAIN
from test_vllm_engine import R1_ZERO, assert_same, served_policy
from tiny_model import random_sequences

from r1fast.config import OptimizerConfig
from r1fast.distributed import Ranks, start
from r1fast.distributed_config import DistributedConfig
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.options import parse
from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.records import Prompt
from r1fast.rollout.backend import release
from r1fast.rollout.engine import RolloutEngine
from r1fast.rollout.vllm_engine import VllmEngine
from r1fast.sharded import Shards
from r1fast.stages.rl import run_rl
from r1fast.start import open_run
from r1fast.trainer import Trainer
from r1fast.trainers import AnyTrainer
from r1fast.weight_sharing import shares_weights
from r1fast.zero_trainer import ZeroTrainer

pytestmark = pytest.mark.skipif(util.find_spec("vllm") is None, reason="needs vLLM, in an environment of its own")
ZERO3 = DistributedConfig(engine="deepspeed", zero_stage=3)
CLIP = PolicyLoss(objective="clip", kl="none", kl_coef=0.0, clip_low=0.2, clip_high=0.3, aggregate="sequence_mean")
PROMPTS = [Prompt(id=f"p{n}", text="", token_ids=tuple(range(3, 9 + n))) for n in range(5)]
MODEL: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}  # heads of 32
SHARING = [*R1_ZERO, "--run.tensorboard", "false", "--rl.steps", "2", "--rl.dev_every_steps", "1"]


def finish(ranks: Ranks, directory: Path, name: str) -> None:
    (directory / f"done-{name}-{ranks.rank}").touch()
    ranks.barrier()
    os._exit(0)


def make(sharing: str, ranks: Ranks) -> tuple[Policy, AnyTrainer]:
    policy = served_policy(**MODEL)
    if sharing == "whole":
        return policy, Trainer(policy, OptimizerConfig(), ranks=ranks)
    policy = Shards.load(lambda: policy, torch.device("cpu"), ZERO3, ranks)
    return policy, ZeroTrainer(policy, OptimizerConfig(), ZERO3, ranks=ranks)


def whole_copy(policy: Policy) -> Policy:
    """What `policy` is now, on this process alone."""
    copy = served_policy(**MODEL)
    weights = dict(policy.module.named_parameters() if policy.shards is None else policy.shards.parameters())
    with torch.no_grad():
        for name, parameter in copy.module.named_parameters():
            parameter.copy_(weights[name])
    copy.version = policy.version
    return copy


def check_engine(ranks: Ranks, sharing: str, team: int) -> None:
    policy, trainer = make(sharing, ranks)
    engine = VllmEngine(policy, rows=16, seed=0, ranks=ranks, tensor_parallel=team)
    try:
        for number in range(3):
            copy = whole_copy(policy)
            paged = RolloutEngine(copy, rows=16, seed=0)
            # another number of prompts on every process, and none at all on some
            mine = [PROMPTS[2 * ranks.rank : 2 * ranks.rank + 2], PROMPTS[: 3 * (ranks.rank == 1)], []][number]
            found = engine.generate(mine, 3, PLAIN)
            assert_same(found, paged.generate(mine, 3, PLAIN) if mine else [])
            batches = pack(ranks.shard(random_sequences(5, seed=number)), micro_batch_tokens=90)
            trainer.step(batches, loss=CLIP, denominator=5.0, lr=1e-2)
        limits = [4, 30, 9]
        mine = PROMPTS[ranks.rank : ranks.rank + 1]
        paged = RolloutEngine(whole_copy(policy), rows=16, seed=0)
        found = engine.generate(mine, 3, replace(PLAIN, max_tokens=30), max_tokens=limits)
        assert_same(found, paged.generate(mine, 3, replace(PLAIN, max_tokens=30), max_tokens=limits))
        assert engine.num_pushes >= 3 and 0 < engine.canary.gap < 1e-5
    finally:
        release(engine)


def _engines(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    ranks = start("cpu")
    for sharing, team in (("whole", 1), ("shared", 1)):
        check_engine(ranks, sharing, team)
    finish(ranks, directory, "engines")


def _teams(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    ranks = start("cpu")
    for sharing in ("whole", "shared"):
        check_engine(ranks, sharing, 2)
    finish(ranks, directory, "teams")


def _two_teams(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    ranks = start("cpu")
    check_engine(ranks, "shared", 2)
    finish(ranks, directory, "two-teams")


def test_each_process_gets_what_the_paged_engine_draws(tmp_path: Path) -> None:
    run_groups([(2, _engines), (2, _teams), (4, _two_teams)], tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 8


def _stage(rank: int, directory: Path, name: str, words: list[str]) -> None:
    torch.set_num_threads(1)
    ranks = start("cpu")
    config = parse([*SHARING, *words]).config
    assert shares_weights(config, "r1_zero") == (name == "shared")
    with open_run(config, directory / name, ranks) as context:
        run_rl(context, "r1_zero")
    finish(ranks, directory, name)


def _paged(rank: int, directory: Path) -> None:
    _stage(rank, directory, "paged", [])


def _whole(rank: int, directory: Path) -> None:
    _stage(rank, directory, "whole", ["--rollout.backend", "vllm", "--rollout.tensor_parallel", "2"])


def _shared(rank: int, directory: Path) -> None:
    zero = ["--distributed.engine", "deepspeed", "--distributed.zero_stage", "3"]
    _stage(rank, directory, "shared", ["--rollout.backend", "vllm", "--rollout.tensor_parallel", "2", *zero])


def test_the_rl_stage_logs_what_it_logs_on_the_paged_engine(tmp_path: Path) -> None:
    run_groups([(2, _paged), (2, _whole), (2, _shared)], tmp_path)
    lines = {}
    for name in ("paged", "whole", "shared"):
        text = (tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8")
        lines[name] = [json.loads(line) for line in text.splitlines()]
    for name in ("whole", "shared"):
        assert len(lines[name]) == len(lines["paged"]) >= 2
        for own, other in zip(lines[name], lines["paged"], strict=True):
            shown = [key for key in other if "time/" not in key and isinstance(other[key], float)]
            assert len(shown) > 3
            for key in shown:
                assert own[key] == pytest.approx(other[key], rel=1e-3, abs=1e-4), (name, own["step"], key)
