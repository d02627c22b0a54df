"""Sequences that ranks have sampled, moved to the ranks that train on them: tensors in one collective, not pickles."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from r1fast.balance import Size
from r1fast.distributed import Ranks
from r1fast.records import Sequence


@dataclass(frozen=True)
class Listed:
    """What every rank knows of a sequence: where it is (`rank`, `number` there), its size and its advantage."""

    rank: int
    number: int
    size: Size
    advantage: float
    with_logp: bool
    with_mass: bool


def list_all(sequences: Seq[Sequence], keys: Seq[tuple[int, int]], ranks: Ranks) -> list[Listed]:
    """The sequences of all ranks, in the order of their `keys`: (group, sample) (collective).

    Where keys are distinct the order does not depend on which rank has which sequence.
    """
    advantages = torch.tensor([sequence.advantage for sequence in sequences], dtype=torch.float64)
    rows = torch.tensor(
        [
            (
                *key,
                sequence.num_prompt_tokens,
                len(sequence.token_ids) - sequence.num_prompt_tokens,
                sequence.rollout_logp is not None,
                sequence.log_kept_mass is not None,
            )
            for key, sequence in zip(keys, sequences, strict=True)
        ],
        dtype=torch.int64,
    ).reshape(-1, 6)
    found = []
    for rank, part in enumerate(ranks.gather_rows(torch.cat([rows, advantages.view(torch.int64)[:, None]], 1))):
        bits = part[:, 6].contiguous().view(torch.float64).tolist()
        for number, (row, advantage) in enumerate(zip(part.tolist(), bits, strict=True)):
            group, sample, num_prompt, num_completion, with_logp, with_mass, _ = row
            size = Size(group, num_prompt, num_completion)
            found.append(((group, sample), Listed(rank, number, size, advantage, bool(with_logp), bool(with_mass))))
    return [listed for _, listed in sorted(found, key=lambda pair: pair[0])]


def move(sequences: Seq[Sequence], listed: Seq[Listed], wanted: Seq[Seq[int]], ranks: Ranks) -> list[Sequence]:
    """This rank's wanted sequences, from whichever rank has them (collective).

    `sequences`: this rank's own, checked (`packing.check_sequences`). `listed`: from `list_all`. `wanted`: by rank, the
    same on all, numbers in `listed`; several ranks may want the same. Token ids travel as int32, log-probs as fp32.
    """
    if ranks.world_size == 1:
        return [sequences[listed[number].number] for number in wanted[0]]
    ids, values = [], []
    for numbers in wanted:
        own = [sequences[listed[n].number] for n in numbers if listed[n].rank == ranks.rank]
        ids.append(_joined([sequence.token_ids for sequence in own], torch.int32))
        values.append(_joined([x for s in own for x in (s.rollout_logp, s.log_kept_mass)], torch.float32))
    mine = [listed[n] for n in wanted[ranks.rank]]
    by_rank = [[one for one in mine if one.rank == rank] for rank in range(ranks.world_size)]
    came_ids = ranks.exchange(ids, [sum(_num_ids(one) for one in part) for part in by_rank])
    came_values = ranks.exchange(values, [sum(_num_values(one) for one in part) for part in by_rank])
    found: dict[Listed, Sequence] = {}
    for part, id_T, value_T in zip(by_rank, came_ids, came_values, strict=True):
        tokens = torch.split(id_T.long(), [_num_ids(one) for one in part]) if part else ()
        pairs = torch.split(value_T, [_num_values(one) for one in part]) if part else ()
        for one, token_ids, both in zip(part, tokens, pairs, strict=True):
            length = one.size.num_completion
            found[one] = Sequence(
                token_ids=token_ids,
                num_prompt_tokens=one.size.num_prompt,
                advantage=one.advantage,
                rollout_logp=both[:length] if one.with_logp else None,
                log_kept_mass=both[len(both) - length :] if one.with_mass else None,
            )
    return [found[one] for one in mine]


def _joined(tensors: Seq[Tensor | None], dtype: torch.dtype) -> Tensor:
    present = [tensor.to(dtype) for tensor in tensors if tensor is not None]
    return torch.cat(present) if present else torch.empty(0, dtype=dtype)


def _num_ids(one: Listed) -> int:
    return one.size.num_prompt + one.size.num_completion


def _num_values(one: Listed) -> int:
    return one.size.num_completion * (one.with_logp + one.with_mass)
