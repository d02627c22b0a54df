"""Mini-batches of a rollout: the same samples on any number of processes, groups and advantages as they were."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from same_training import Case, minibatches, rollout_of
from tiny_model import NUM_VOCAB, random_sequences

from r1fast.distributed import Ranks
from r1fast.stages.minibatches import Minibatch, Packing, own_share

CASE = Case(
    groups=tuple((2 + n, (5 * n, 9, 14 - n, 3)) for n in range(6)),
    owners=(0, 1, 0, 1, 2, 3),
    budget=60,
    exchanged=True,
    updates=3,
    share_prompts=False,
    skip=False,
    aggregate="sequence_mean",
)


def completions(part: Minibatch) -> list[tuple[tuple[int, ...], float]]:
    found = []
    for batch in part.batches:
        bounds = batch.completion_cu_seqlens.tolist()
        for (start, end), advantage in zip(itertools.pairwise(bounds), batch.advantage.tolist(), strict=True):
            found.append((tuple(batch.targets[start:end].tolist()), advantage))
    return sorted(found)


def test_every_sample_once_and_sizes_differ_by_one_at_most() -> None:
    parts = minibatches(CASE, 0, Ranks())
    found = sorted(one for part in parts for one in completions(part))
    scored = rollout_of(CASE, 0, Ranks())
    assert [targets for targets, _ in found] == sorted(tuple(item.rollout.token_ids.tolist()) for item in scored)
    assert [len(completions(part)) for part in parts] == [8, 8, 8]
    assert [completions(part) for part in parts] == [completions(part) for part in minibatches(CASE, 0, Ranks())]
    whole = minibatches(replace(CASE, updates=1), 0, Ranks())
    assert len(whole) == 1 and completions(whole[0]) == found


def test_shared_prompts_change_the_tokens_and_not_the_samples() -> None:
    for one, other in zip(
        minibatches(CASE, 0, Ranks()), minibatches(replace(CASE, share_prompts=True), 0, Ranks()), strict=True
    ):
        assert completions(one) == completions(other)
    whole, shared = (minibatches(replace(CASE, updates=1, share_prompts=s), 0, Ranks())[0] for s in (False, True))
    tokens = [sum(len(batch.token_ids) for batch in part.batches) for part in (whole, shared)]
    assert tokens[1] < tokens[0] and all(len(b.token_ids) <= 60 for b in shared.batches)


def test_what_has_no_advantage_is_left_out_where_asked() -> None:
    kept, skipped = (minibatches(replace(CASE, skip=skip), 0, Ranks()) for skip in (False, True))
    for all_of_it, part in zip(kept, skipped, strict=True):
        zeros = [one for one in completions(all_of_it) if one[1] == 0.0]
        assert completions(part) == [one for one in completions(all_of_it) if one[1] != 0.0]
        assert sorted(tuple(s.token_ids[s.num_prompt_tokens :].tolist()) for s in part.left_out) == sorted(
            targets for targets, _ in zeros
        )
    assert any(part.left_out for part in skipped)


def test_bad_values_are_refused_before_anything_is_sent() -> None:
    packing = Packing(micro_batch_tokens=60, num_vocab=NUM_VOCAB)
    bad = replace(random_sequences(1)[0], token_ids=torch.tensor([1, NUM_VOCAB]), rollout_logp=None, log_kept_mass=None)
    with pytest.raises(ValueError, match="leave the vocabulary"):
        own_share([*random_sequences(2), replace(bad, num_prompt_tokens=1)], packing, Ranks())


def test_shares_of_what_every_rank_has_are_disjoint_complete_and_alike() -> None:
    sequences = random_sequences(40, with_logp=False)
    packing = Packing(micro_batch_tokens=100, num_vocab=NUM_VOCAB)
    parts = [own_share(sequences, packing, Ranks(rank=rank, world_size=3)) for rank in range(3)]
    tokens = [sum(len(batch.token_ids) for batch in part.batches) for part in parts]
    assert sum(tokens) == sum(len(sequence.token_ids) for sequence in sequences)
    assert sum(len(batch.advantage) for part in parts for batch in part.batches) == 40
    assert len({len(part.batches) for part in parts}) == 1
    assert (
        max(tokens) * 3 / sum(tokens) - 1 == pytest.approx(parts[0].figures["imbalance"])
        and max(tokens) - min(tokens) < 40
    )
    assert parts[0].figures == parts[1].figures == parts[2].figures and parts[0].figures["utilisation"] > 0.8


def test_processes_of_one_share_get_the_same() -> None:
    sequences = random_sequences(20, with_logp=False)
    packing = Packing(micro_batch_tokens=100, num_vocab=NUM_VOCAB)
    parts = [own_share(sequences, packing, Ranks(rank=rank, world_size=4, sequence_parallel=2)) for rank in range(4)]
    assert completions(parts[0]) == completions(parts[1]) != completions(parts[2]) == completions(parts[3])
    assert len(completions(parts[0])) + len(completions(parts[2])) == 20
