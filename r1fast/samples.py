"""What people read of a run: which completions are kept, and one line of `samples.jsonl` for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from r1fast.records import ScoredRollout

MAX_TOKENS = (
    1024  # tokens of a sample whose text, log-prob and entropy are kept, so that long chains do not fill a disk
)
DECIMALS = 4
CONTEXT_TOKENS = 8  # tokens before a token that can change how it reads, in any tokenizer we know of
UNFINISHED = "\ufffd"  # what a tokenizer writes for bytes that are not a character (yet)
CHARACTER_TOKENS = 4  # the most tokens that make one character: the bytes of UTF-8


class Decoder(Protocol):
    """The part of a tokenizer that turns ids into text."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> Any:
        """Text of a list of token ids."""


def pick_groups(
    scored: Sequence[ScoredRollout], *, group_size: int, num_samples: int, turn: int
) -> list[ScoredRollout]:
    """Whole groups of a rollout: as many as `num_samples` holds, one at least.

    The kinds of prompt (math, general, harmful, ...) take turns, from `turn` to `turn`, so that every kind is seen.
    """
    by_kind: dict[str, list[Sequence[ScoredRollout]]] = {}
    for start in range(0, len(scored), group_size):
        group = scored[start : start + group_size]
        by_kind.setdefault(group[0].rollout.prompt.kind, []).append(group)
    kinds = list(by_kind)
    first = turn % max(1, len(kinds))
    kinds = kinds[first:] + kinds[:first]
    longest = max(map(len, by_kind.values()), default=0)
    in_turns = [by_kind[kind][number] for number in range(longest) for kind in kinds if number < len(by_kind[kind])]
    return [item for group in in_turns[: max(1, num_samples // group_size)] for item in group]


def sample_row(item: ScoredRollout, tokenizer: Decoder) -> dict[str, Any]:
    """A completion with its prompt, rewards and advantage, and per token its text, log-prob and entropy (nats).

    The token lists hold the first `MAX_TOKENS` tokens of `length`, the terminal token included; a value that is not
    finite is None. Log-probs and entropies are those of the rollout: the policy before the step, at its temperature.
    """
    rollout, prompt = item.rollout, item.rollout.prompt
    kept = rollout.token_ids[:MAX_TOKENS].tolist()
    return {
        "id": prompt.id,
        "kind": prompt.kind,
        "language": prompt.language,
        "prompt": prompt.text,
        "answer": prompt.answer,
        "sample_index": rollout.sample_index,
        "response": rollout.text,
        "reward": item.reward,
        "parts": dict(item.parts),
        "outcome": item.outcome,
        "advantage": item.advantage,
        "finish_reason": rollout.finish_reason,
        "length": len(rollout.token_ids),
        "tokens": token_texts(kept, tokenizer),
        "logp": _rounded(rollout.logp),
        "entropy": _rounded(rollout.entropy),
    }


def token_texts(token_ids: Sequence[int], tokenizer: Decoder) -> list[str]:
    """The text that every token adds, special tokens included; together they are the decoded text.

    A token that ends within a character adds nothing, the one that completes it adds the character.
    """
    texts: list[str] = []
    start, read = 0, 0  # the text of [start, read) has been given out
    for end in range(1, len(token_ids) + 1):
        before = _text(tokenizer, token_ids[start:read])
        text = _text(tokenizer, token_ids[start:end])
        if text.endswith(UNFINISHED) and end < len(token_ids) and end - read < CHARACTER_TOKENS:
            texts.append("")
            continue
        texts.append(text[len(before) :])
        start, read = max(start, read - CONTEXT_TOKENS), end
    return texts


def _text(tokenizer: Decoder, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False)) if token_ids else ""


def _rounded(values_C: Tensor) -> list[float | None]:
    numbers = values_C[:MAX_TOKENS].tolist()
    return [round(value, DECIMALS) if math.isfinite(value) else None for value in numbers]
