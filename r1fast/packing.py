"""Sequences -> packed micro-batches, by a token budget; values are checked here, on the host, once."""

# N sequences, T packed tokens (prompt and completion), C packed completion tokens, V vocabulary

from __future__ import annotations

import torch
from torch import Tensor

from r1fast.records import Batch, Sequence


def pack(sequences: list[Sequence], *, micro_batch_tokens: int, num_vocab: int | None = None) -> list[Batch]:
    """Pack into micro-batches of at most `micro_batch_tokens` tokens, sequences of like length together.

    A sequence is never split: one longer than the budget makes a micro-batch of its own. Order: longest first, so
    that memory which does not suffice shows at once. Tensors are on the CPU. Raises ValueError for token ids outside
    [0, `num_vocab`), a completion without a token before it, values that are not finite, mixed sequences with and
    without rollout log-probs.
    """
    for number, sequence in enumerate(sequences):
        _check(number, sequence, num_vocab)
    lengths = [len(sequence.token_ids) for sequence in sequences]
    groups = partition(lengths, micro_batch_tokens=micro_batch_tokens)
    return [_pack_one([sequences[number] for number in group]) for group in groups]


def partition(lengths: list[int], *, micro_batch_tokens: int) -> list[list[int]]:
    """Sequence numbers of each micro-batch that `pack` makes, in its order (ties keep theirs)."""
    if micro_batch_tokens < 1:
        raise ValueError(f"micro_batch_tokens = {micro_batch_tokens} must be at least 1; raise optimizer's value")
    groups: list[list[int]] = []
    filled = 0
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if groups and filled + lengths[number] <= micro_batch_tokens:
            groups[-1].append(number)
            filled += lengths[number]
        else:
            groups.append([number])
            filled = lengths[number]
    return groups


def position_ids(cu_seqlens: Tensor) -> Tensor:
    """int64 [T]: each token's position in its own sequence, from `cu_seqlens` int32 [N+1]."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    num_tokens = int(cu_seqlens[-1])
    return torch.arange(num_tokens, device=cu_seqlens.device) - starts.repeat_interleave(lengths)


def _pack_one(sequences: list[Sequence]) -> Batch:
    lengths = torch.tensor([len(s.token_ids) for s in sequences])
    num_completion = lengths - torch.tensor([s.num_prompt_tokens for s in sequences])
    token_ids = torch.cat([s.token_ids for s in sequences]).long()
    ends = lengths.cumsum(0)
    # token t is predicted by the hidden state at t - 1
    target_index = torch.cat([torch.arange(e - c, e) for e, c in zip(ends, num_completion, strict=True)]).long()
    return Batch(
        token_ids=token_ids,
        cu_seqlens=_offsets(lengths),
        predictor_index=target_index - 1,
        targets=token_ids[target_index],
        completion_cu_seqlens=_offsets(num_completion),
        advantage=torch.tensor([s.advantage for s in sequences], dtype=torch.float32),
        rollout_logp=_join([s.rollout_logp for s in sequences], "rollout_logp"),
        log_kept_mass=_join([s.log_kept_mass for s in sequences], "log_kept_mass"),
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
