"""Sequences -> packed micro-batches, by a token budget; values are checked here, on the host, once."""

# N sequences, T packed tokens (prompt and completion), C packed completion tokens, V vocabulary

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

import torch
from torch import Tensor

from r1fast.records import Batch, Sequence


def pack(
    sequences: list[Sequence], *, micro_batch_tokens: int, num_vocab: int | None = None, share_prompts: bool = False
) -> list[Batch]:
    """Pack into micro-batches of at most `micro_batch_tokens` tokens, best-fit decreasing.

    A sequence is never split: one longer than the budget makes a micro-batch of its own. Order: longest first, so
    that memory which does not suffice shows at once. `share_prompts` stores a prompt once for all of its sequences in a
    micro-batch (`shared_prompt.SharedPromptContext` attends to it). Tensors are on the CPU. Raises ValueError for token
    ids outside [0, `num_vocab`), a completion without a token before it, values that are not finite, mixed sequences
    with and without rollout log-probs.
    """
    check_sequences(sequences, num_vocab)
    units = [[number] for number in range(len(sequences))]
    if share_prompts:
        units = _units(sequences, micro_batch_tokens)
    costs = [_cost([sequences[number] for number in unit]) for unit in units]
    groups = partition(costs, micro_batch_tokens=micro_batch_tokens)
    return [_pack_units([[sequences[n] for n in units[u]] for u in group], share_prompts) for group in groups]


def pack_one(sequences: list[Sequence], *, share_prompts: bool = False) -> Batch:
    """One micro-batch of checked sequences (`check_sequences`), in this order; with shared prompts, by prompt."""
    numbers = [[number] for number in range(len(sequences))]
    if share_prompts:
        numbers = _units(sequences, None)
    return _pack_units([[sequences[n] for n in unit] for unit in numbers], share_prompts)


def check_sequences(sequences: Iterable[Sequence], num_vocab: int | None = None) -> None:
    """Raise ValueError, with the sequence's number, for values that `pack` refuses."""
    for number, sequence in enumerate(sequences):
        _check(number, sequence, num_vocab)


def partition(lengths: list[int], *, micro_batch_tokens: int) -> list[list[int]]:
    """Sequence numbers of each micro-batch that `pack` makes, in its order (ties keep theirs)."""
    if micro_batch_tokens < 1:
        raise ValueError(f"micro_batch_tokens = {micro_batch_tokens} must be at least 1; raise optimizer's value")
    groups: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, group), ascending
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        tightest = bisect_left(rooms, (lengths[number], 0))
        if tightest < len(rooms):
            room, group = rooms.pop(tightest)
            groups[group].append(number)
        else:
            room, group = micro_batch_tokens, len(groups)
            groups.append([number])
        if room > lengths[number]:
            insort(rooms, (room - lengths[number], group))
    return groups


def position_ids(cu_seqlens: Tensor, parent: Tensor | None = None) -> Tensor:
    """int64 [T]: each token's position in its own sequence; a completion's go on where its prompt's (`parent`) end."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    if parent is not None:
        starts = starts - torch.where(parent >= 0, lengths[parent.long().clamp(min=0)], 0)
    num_tokens = int(cu_seqlens[-1])
    return torch.arange(num_tokens, device=cu_seqlens.device) - starts.repeat_interleave(lengths)


def _units(sequences: list[Sequence], budget: int | None) -> list[list[int]]:
    """Sequence numbers that share a prompt, split where a unit would pass the budget, if there is one."""
    by_prompt: dict[tuple[int, ...], list[list[int]]] = {}
    for number, sequence in enumerate(sequences):
        prompt = tuple(sequence.token_ids[: sequence.num_prompt_tokens].tolist())
        units = by_prompt.setdefault(prompt, [[]])
        if budget and units[-1] and _cost([sequences[n] for n in units[-1]] + [sequence]) > budget:
            units.append([])
        units[-1].append(number)
    return [unit for units in by_prompt.values() for unit in units]


def _cost(unit: list[Sequence]) -> int:
    """Packed tokens of sequences that share a prompt."""
    num_prompt = unit[0].num_prompt_tokens
    return num_prompt + sum(len(sequence.token_ids) - num_prompt for sequence in unit)


def _pack_units(units: list[list[Sequence]], share_prompts: bool) -> Batch:
    """One micro-batch; a unit of several sequences stores its prompt once, as the parent of their completions."""
    tokens: list[Tensor] = []
    lengths: list[int] = []
    parents: list[int] = []
    predictors: list[Tensor] = []
    num_tokens = 0

    def add(segment: Tensor, parent: int) -> int:
        """Append a segment; the packed position at which it starts."""
        nonlocal num_tokens
        tokens.append(segment)
        lengths.append(len(segment))
        parents.append(parent)
        num_tokens += len(segment)
        return num_tokens - len(segment)

    for unit in units:
        num_prompt = unit[0].num_prompt_tokens
        if len(unit) == 1:
            start = add(unit[0].token_ids, -1)
            # token t is predicted by the hidden state at t - 1
            predictors.append(torch.arange(start + num_prompt, start + len(unit[0].token_ids)) - 1)
            continue
        root = len(lengths)
        prompt_end = add(unit[0].token_ids[:num_prompt], -1) + num_prompt
        for sequence in unit:
            completion = sequence.token_ids[num_prompt:]
            start = add(completion, root)
            predictor = torch.arange(start, start + len(completion)) - 1
            if len(completion):
                predictor[0] = prompt_end - 1
            predictors.append(predictor)
    sequences = [sequence for unit in units for sequence in unit]
    num_completion = torch.tensor([len(s.token_ids) - s.num_prompt_tokens for s in sequences])
    return Batch(
        token_ids=torch.cat(tokens).long(),
        cu_seqlens=_offsets(torch.tensor(lengths)),
        predictor_index=torch.cat(predictors).long(),
        targets=torch.cat([s.token_ids[s.num_prompt_tokens :] for s in sequences]).long(),
        completion_cu_seqlens=_offsets(num_completion),
        advantage=torch.tensor([s.advantage for s in sequences], dtype=torch.float32),
        rollout_logp=_join([s.rollout_logp for s in sequences], "rollout_logp"),
        log_kept_mass=_join([s.log_kept_mass for s in sequences], "log_kept_mass"),
        parent=torch.tensor(parents, dtype=torch.int32) if share_prompts else None,
    )


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)


def _join(values: list[Tensor | None], name: str) -> Tensor | None:
    present = [value for value in values if value is not None]
    if not present:
        return None
    if len(present) != len(values):
        raise ValueError(
            f"{len(values) - len(present)} of {len(values)} sequences have no {name}: give it for all or for none"
        )
    return torch.cat(present).float()


def _check(number: int, sequence: Sequence, num_vocab: int | None) -> None:
    tokens, num_prompt = sequence.token_ids, sequence.num_prompt_tokens
    where = f"sequence {number}"
    if tokens.dim() != 1 or tokens.dtype != torch.int64 or tokens.device.type != "cpu":
        raise ValueError(
            f"{where}: token_ids must be int64 [L] on the CPU, got {tokens.dtype} {list(tokens.shape)} on "
            f"{tokens.device}"
        )
    if not 1 <= num_prompt <= len(tokens):
        raise ValueError(
            f"{where}: num_prompt_tokens = {num_prompt} must be between 1 and its {len(tokens)} tokens, for each "
            "completion token needs one before it; start the prompt with a BOS or a template token"
        )
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or (num_vocab is not None and high >= num_vocab):
        raise ValueError(f"{where}: token ids {low}..{high} leave the vocabulary of {num_vocab}; wrong tokenizer?")
    values = {"advantage": torch.tensor(sequence.advantage)}
    for name, tensor in (("rollout_logp", sequence.rollout_logp), ("log_kept_mass", sequence.log_kept_mass)):
        if tensor is not None:
            values[name] = tensor
            if tensor.shape != (len(tokens) - num_prompt,):
                raise ValueError(f"{where}: {name} has {list(tensor.shape)}, want [{len(tokens) - num_prompt}]")
    for name, tensor in values.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{where}: {name} holds a value that is not finite; check its reward or its log-probs")
