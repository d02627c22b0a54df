"""Prompts stored once: the same log-probs and gradients as separate sequences, with fewer tokens."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import tiny_policy

from r1fast.config import OptimizerConfig
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.packing import pack, position_ids
from r1fast.policy import Policy
from r1fast.records import Sequence
from r1fast.shared_prompt import SharedPromptContext
from r1fast.trainer import Trainer, score

Group = tuple[int, list[int]]  # prompt length, completion lengths


def sequences_of(groups: list[Group]) -> list[Sequence]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for num_prompt, completions in groups:
        prompt = torch.randint(4, 90, (num_prompt,), generator=generator)
        for length in completions:
            tokens = torch.cat([prompt, torch.randint(4, 90, (length,), generator=generator)])
            advantage = float(torch.randn((), generator=generator))
            made.append(Sequence(token_ids=tokens, num_prompt_tokens=num_prompt, advantage=advantage))
    return made


def by_sequence(
    policy: Policy, sequences: list[Sequence], budget: int, share: bool
) -> dict[tuple[int, ...], list[float]]:
    batches = pack(sequences, micro_batch_tokens=budget, share_prompts=share)
    found: dict[tuple[int, ...], list[float]] = {}
    for batch, logp in zip(batches, score(policy, batches, temperature=1.0), strict=True):
        bounds = batch.completion_cu_seqlens.tolist()
        for start, end in itertools.pairwise(bounds):
            found[tuple(batch.targets[start:end].tolist())] = logp[start:end].tolist()
    return found


@settings(max_examples=15, deadline=None)
@given(
    groups=st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(0, 12), min_size=1, max_size=5)), min_size=1, max_size=4
    ),
    budget=st.sampled_from([8, 40, 10_000]),
)
def test_log_probs_are_those_of_separate_sequences(groups: list[Group], budget: int) -> None:
    policy, sequences = tiny_policy(), sequences_of(groups)
    alone, shared = (by_sequence(policy, sequences, budget, share) for share in (False, True))
    assert alone.keys() == shared.keys()
    for key, values in alone.items():
        assert shared[key] == pytest.approx(values, abs=2e-5)


def test_gradients_are_those_of_separate_sequences_and_tokens_are_fewer() -> None:
    sequences = sequences_of([(9, [5, 7, 3, 6]), (4, [8, 2]), (6, [4])])
    moved, tokens = [], []
    for share in (False, True):
        policy = tiny_policy()
        trainer = Trainer(policy, OptimizerConfig(max_grad_norm=0.0))
        batches = pack(sequences, micro_batch_tokens=10_000, share_prompts=share)
        loss = PolicyLoss(kl="none", kl_coef=0.0)
        sums = trainer.step(batches, loss=loss, denominator=len(sequences), lr=1e-3)
        moved.append(sums["grad_norm_sum"])
        tokens.append(sum(len(batch.token_ids) for batch in batches))
    assert moved[1] == pytest.approx(moved[0], rel=1e-4)
    assert tokens == [9 * 4 + 21 + 4 * 2 + 10 + 10, 9 + 21 + 4 + 10 + 10]


def test_positions_go_on_where_the_prompt_ends() -> None:
    cu_seqlens, parent = torch.tensor([0, 3, 5, 6, 8]), torch.tensor([-1, 0, 0, -1])
    assert position_ids(cu_seqlens, parent).tolist() == [0, 1, 2, 3, 4, 3, 0, 1]


def test_a_parent_must_be_an_earlier_root() -> None:
    with pytest.raises(ValueError, match="earlier, non-empty root"):
        SharedPromptContext(torch.tensor([0, 2, 4]), torch.tensor([1, -1]), torch.device("cpu"))
