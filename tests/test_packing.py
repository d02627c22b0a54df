"""Packing: indices point at the predicting hidden state, nothing is split, bad values are refused on the host."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import NUM_VOCAB, random_sequences

from r1fast.packing import pack, partition, position_ids
from r1fast.records import Sequence


def test_indices_targets_and_offsets() -> None:
    short = Sequence(token_ids=torch.tensor([5, 6, 7]), num_prompt_tokens=1, advantage=0.5)
    long = Sequence(token_ids=torch.tensor([1, 2, 3, 4]), num_prompt_tokens=3, advantage=-1.0)
    bare = Sequence(token_ids=torch.tensor([8]), num_prompt_tokens=1)
    (batch,) = pack([short, long, bare], micro_batch_tokens=100)
    assert batch.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert batch.cu_seqlens.tolist() == [0, 4, 7, 8] and batch.cu_seqlens.dtype == torch.int32
    assert batch.predictor_index.tolist() == [2, 4, 5]
    assert batch.targets.tolist() == [4, 6, 7]
    assert batch.completion_cu_seqlens.tolist() == [0, 1, 3, 3] and batch.completion_cu_seqlens.dtype == torch.int32
    assert batch.advantage.tolist() == [-1.0, 0.5, 0.0]
    assert batch.rollout_logp is None and batch.log_kept_mass is None
    assert position_ids(batch.cu_seqlens).tolist() == [0, 1, 2, 3, 0, 1, 2, 0]


def test_log_probs_travel_with_their_sequence() -> None:
    sequences = random_sequences(9)
    (batch,) = pack(sequences, micro_batch_tokens=10_000)
    order = partition([len(s.token_ids) for s in sequences], micro_batch_tokens=10_000)[0]
    expected = torch.cat([sequences[n].rollout_logp for n in order if sequences[n].rollout_logp is not None])
    assert batch.rollout_logp is not None and torch.equal(batch.rollout_logp, expected)
    assert batch.log_kept_mass is not None and batch.log_kept_mass.shape == expected.shape


def test_budget_holds_and_no_sequence_is_lost_or_split() -> None:
    sequences = random_sequences(50)
    batches = pack(sequences, micro_batch_tokens=64)
    assert all(len(batch.token_ids) <= 64 for batch in batches)
    rows = [
        tuple(batch.token_ids[a:b].tolist())
        for batch in batches
        for a, b in zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)
    ]
    assert sorted(rows) == sorted(tuple(s.token_ids.tolist()) for s in sequences)
    for batch in batches:
        lengths = batch.cu_seqlens.diff().tolist()
        assert lengths == sorted(lengths, reverse=True)
    firsts = [int(batch.cu_seqlens[1]) for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


@given(lengths=st.lists(st.integers(1, 40), max_size=60), budget=st.integers(1, 64))
def test_each_sequence_goes_where_it_fits_best(lengths: list[int], budget: int) -> None:
    groups = partition(lengths, micro_batch_tokens=budget)
    assert sorted(number for group in groups for number in group) == list(range(len(lengths)))
    expected: list[list[int]] = []  # the definition, without a sorted list of what is left
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        room = {n: budget - sum(lengths[other] for other in group) for n, group in enumerate(expected)}
        fitting = [n for n in room if room[n] >= lengths[number]]
        if fitting:
            expected[min(fitting, key=lambda n: (room[n], n))].append(number)
        else:
            expected.append([number])
    assert groups == expected


def test_short_sequences_fill_what_long_ones_leave() -> None:
    """Into the last micro-batch alone they would make three, 0.67 full."""
    assert partition([60, 60, 40, 40], micro_batch_tokens=100) == [[0, 2], [1, 3]]


def test_a_sequence_over_the_budget_goes_alone() -> None:
    assert partition([3, 50, 4], micro_batch_tokens=8) == [[1], [2, 0]]


def test_nothing_packs_to_nothing() -> None:
    assert pack([], micro_batch_tokens=8) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_prompt_tokens": 0}, "num_prompt_tokens = 0"),
        ({"num_prompt_tokens": 99}, "num_prompt_tokens = 99"),
        ({"token_ids": torch.tensor([3, NUM_VOCAB])}, "leave the vocabulary"),
        ({"token_ids": torch.tensor([-1, 3])}, "leave the vocabulary"),
        ({"token_ids": torch.tensor([1, 2], dtype=torch.int32)}, "int64"),
        ({"advantage": float("nan")}, "advantage"),
        ({"rollout_logp": torch.tensor([float("-inf")])}, "rollout_logp"),
        ({"rollout_logp": torch.zeros(2)}, "rollout_logp has"),
    ],
)
def test_bad_values_are_refused(change: dict[str, object], message: str) -> None:
    good = Sequence(token_ids=torch.tensor([3, 4]), num_prompt_tokens=1, rollout_logp=torch.tensor([-1.0]))
    with pytest.raises(ValueError, match=message):
        pack([dataclasses.replace(good, **change)], micro_batch_tokens=8, num_vocab=NUM_VOCAB)


def test_log_probs_for_some_only_are_refused() -> None:
    with pytest.raises(ValueError, match="for all or for none"):
        pack(random_sequences(2) + random_sequences(1, with_logp=False), micro_batch_tokens=500)


def test_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="micro_batch_tokens = 0"):
        pack(random_sequences(2), micro_batch_tokens=0)
