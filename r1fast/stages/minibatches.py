"""A rollout of all ranks split into mini-batches, and each of them shared out between the ranks anew."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise

import torch

from r1fast.balance import Plan, Size, balance_figures, packed_tokens, spread_sequences
from r1fast.distributed import Ranks
from r1fast.exchange import list_all, move
from r1fast.packing import check_sequences, pack_one
from r1fast.records import Batch, ScoredRollout, Sequence
from r1fast.stream import permutation


@dataclass(frozen=True, kw_only=True)
class Minibatch:
    """What this rank trains on in one optimizer step.

    `left_out`: its sequences that have no gradient and only count in the denominator. `figures`: of all ranks, see
    `balance_figures`.
    """

    batches: list[Batch]
    left_out: list[Sequence]
    figures: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How micro-batches are made; `skip`: leave sequences without an advantage out."""

    micro_batch_tokens: int
    num_vocab: int
    share_prompts: bool = False
    skip: bool = False

    def plan(self, sizes: Seq[Size], ranks: Ranks) -> tuple[Plan, dict[str, float]]:
        """Who trains on which sequence, and its figures."""
        budget, share = self.micro_batch_tokens, self.share_prompts
        plan = spread_sequences(sizes, num_ranks=ranks.num_shares, micro_batch_tokens=budget, share_prompts=share)
        return plan, balance_figures(packed_tokens(plan, sizes, share_prompts=share), budget)

    def batch(self, sequences: list[Sequence]) -> Batch:
        """The micro-batch of these sequences."""
        return pack_one(sequences, share_prompts=self.share_prompts)


def split_rollout(
    scored: Seq[ScoredRollout], places: Mapping[str, int], updates: int, key: str, packing: Packing, ranks: Ranks
) -> list[Minibatch]:
    """The rollout of all ranks split at random, by `key`, into one mini-batch per optimizer step (collective).

    There are `updates` of them, or as many as the rollout has samples if that is less. `scored`: this rank's own
    samples. `places`: all ranks' prompts, by id, in the order that samples are to have. A mini-batch has the same
    samples whatever the number of ranks; sizes differ by one at most.
    """
    sequences = [as_sequence(item) for item in scored]
    check_sequences(sequences, packing.num_vocab)
    keys = [(places.get(item.rollout.prompt.id, 0), item.rollout.sample_index) for item in scored]
    listed = list_all(sequences, keys, ranks)
    updates = max(1, min(updates, len(listed)))
    order = permutation(len(listed), key) if updates > 1 else list(range(len(listed)))
    bounds = [len(listed) * number // updates for number in range(updates + 1)]
    left_out, plans, figures = [], [], []
    for low, high in pairwise(bounds):
        drop = {n for n in order[low:high] if packing.skip and listed[n].advantage == 0.0}
        left_out.append([sequences[listed[n].number] for n in sorted(drop) if listed[n].rank == ranks.rank])
        trained = [n for n in order[low:high] if n not in drop]
        plan, values = packing.plan([listed[n].size for n in trained], ranks)
        plans.append([[[trained[n] for n in batch] for batch in batches] for batches in plan])
        figures.append(values)
    share, size = ranks.rank // ranks.sequence_parallel, ranks.sequence_parallel
    wanted = [[n for plan in plans for batch in plan[rank // size] for n in batch] for rank in range(ranks.world_size)]
    came = iter(move(sequences, listed, wanted, ranks))
    return [
        Minibatch(
            batches=[packing.batch([next(came) for _ in batch]) for batch in plan[share]],
            left_out=rest,
            figures=values,
        )
        for plan, rest, values in zip(plans, left_out, figures, strict=True)
    ]


def own_share(sequences: Seq[Sequence], packing: Packing, ranks: Ranks) -> Minibatch:
    """What this rank trains on of sequences that every rank has."""
    check_sequences(sequences, packing.num_vocab)
    sizes = [Size(0, s.num_prompt_tokens, len(s.token_ids) - s.num_prompt_tokens) for s in sequences]
    plan, figures = packing.plan(sizes, ranks)
    batches = [packing.batch([sequences[n] for n in batch]) for batch in plan[ranks.rank // ranks.sequence_parallel]]
    return Minibatch(batches=batches, left_out=[], figures=figures)


def as_sequence(item: ScoredRollout) -> Sequence:
    """A completion as a training sequence: the very token ids that were sampled."""
    rollout = item.rollout
    prompt = torch.tensor(rollout.prompt.token_ids, dtype=torch.int64)
    return Sequence(
        token_ids=torch.cat([prompt, rollout.token_ids]),
        num_prompt_tokens=len(prompt),
        advantage=item.advantage,
        rollout_logp=rollout.logp,
        log_kept_mass=rollout.log_kept_mass,
    )
