"""Slices of long sequences on several processes: the training of one process; what cannot be sliced is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import run_groups
from same_training import ENGINES, check_same
from tiny_model import random_sequences, tiny_config, tiny_policy

from r1fast.config import ConfigError
from r1fast.distributed import Ranks, start
from r1fast.packing import pack
from r1fast.sequence_parallel import SequenceLogprobs, check_heads, check_sequence_parallel
from r1fast.trainer import score


def all_share(rank: int, directory: Path) -> None:
    """Four heads and two key/value heads on all processes: four of them compute each of the two twice."""
    torch.set_num_threads(1)
    ranks = start("cpu")
    ranks = ranks.in_sequence_groups(ranks.world_size)
    for checkpointing in (False, True):
        policy = tiny_policy(gradient_checkpointing=checkpointing)
        for budget, count in ((5000, 9), (60, 9), (1, 2)):
            batches = pack(random_sequences(count, seed=budget), micro_batch_tokens=budget)
            sliced = score(policy, batches, temperature=0.8, logprobs=SequenceLogprobs(ranks))
            for one, other in zip(sliced, score(policy, batches, temperature=0.8), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)
    shared = pack(random_sequences(2), micro_batch_tokens=500, share_prompts=True)
    with pytest.raises(ValueError, match="shared prompts cannot be sliced"):
        score(policy, shared, temperature=1.0, logprobs=SequenceLogprobs(ranks))
    ranks.barrier()
    ranks.shutdown()
    (directory / f"scored-{ranks.world_size}-{rank}").touch()


def train_all_share(rank: int, directory: Path) -> None:
    check_same(rank, directory, examples=3, engines=("torch",), sharing=2, gradient_checkpointing=True)


def train_four(rank: int, directory: Path) -> None:
    check_same(rank, directory, examples=2, engines=("torch",), sharing=4)


def train_two_by_two(rank: int, directory: Path) -> None:
    """Two shares of two processes each, also where DeepSpeed holds parameters, gradients and masters."""
    engines = ("torch", "1", "3 shared")
    check_same(rank, directory, examples=2, engines=engines, sharing=2, gradient_checkpointing=True)


def train_in_many_cases(rank: int, directory: Path) -> None:
    check_same(rank, directory, examples=25, engines=ENGINES, sharing=2, gradient_checkpointing=True)


def test_log_probs_gradients_and_steps_are_those_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    jobs = [(2, all_share), (4, all_share), (2, train_all_share), (4, train_four), (4, train_two_by_two)]
    run_groups(jobs, tmp_path)
    assert len(list(tmp_path.glob("scored-*"))) == 6 and len(list(tmp_path.glob("done-*"))) == 6 + 4


@pytest.mark.slow
def test_many_cases_and_every_stage_of_zero(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    run_groups([(2, train_in_many_cases), (4, train_in_many_cases)], tmp_path)
    assert len(list(tmp_path.glob("done-*"))) == 6


@pytest.mark.parametrize(("heads", "kv", "size"), [(4, 2, 2), (4, 2, 4), (8, 2, 4), (32, 8, 16), (9, 3, 3)])
def test_heads_that_can_be_shared_out(heads: int, kv: int, size: int) -> None:
    check_heads(heads, kv, size)


@pytest.mark.parametrize(("heads", "kv", "size"), [(9, 3, 2), (4, 4, 8), (12, 4, 3), (12, 4, 6)])
def test_heads_that_cannot_are_named(heads: int, kv: int, size: int) -> None:
    with pytest.raises(ConfigError, match=rf"sequence_parallel = {size} cannot share {heads} query and {kv} key/value"):
        check_heads(heads, kv, size)


def test_a_models_config_is_checked_before_it_is_loaded() -> None:
    check_sequence_parallel(tiny_config(), 4)
    check_sequence_parallel(tiny_config(), 1)
    with pytest.raises(ConfigError, match=r"it must divide the former, .*: \[2, 4\]"):
        check_sequence_parallel(tiny_config(), 3)
    rope: dict[str, Any] = {"rope_type": "dynamic", "factor": 2.0}
    described = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2, rope_parameters=rope)
    described.get_text_config = lambda: described
    with pytest.raises(ConfigError, match="rope_type 'dynamic'"):
        check_sequence_parallel(described, 2)


def test_groups_must_divide_the_processes() -> None:
    assert Ranks().in_sequence_groups(1) == Ranks()
    with pytest.raises(ConfigError, match="sequence_parallel = 2 does not divide 3 processes"):
        Ranks(world_size=3).in_sequence_groups(2)
    ranks = [Ranks(rank=rank, world_size=4, sequence_parallel=2) for rank in range(4)]
    assert [one.sequence_place for one in ranks] == [0, 1, 0, 1] and ranks[0].num_shares == 2
