"""What a pipeline draws its tasks and its non-reasoning data from.

A source makes prompts without token ids; `r1fast.templates` writes them for a checkpoint's tokenizer. Sources that
have no general data raise when a stage asks for it: a stage never trains on nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from r1fast.records import Prompt

Split = Literal["train", "dev", "held_out"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A supervised example: a prompt (token ids unset) and the text of its whole response, `<think>` included."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, kw_only=True)
class PreferencePair:
    """Two responses to one prompt and which one the judge prefers; for the helpful reward model."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True, kw_only=True)
class SafetyExample:
    """A response judged alone; for the safe reward model."""

    prompt: Prompt
    response: str
    safe: bool


class Source(Protocol):
    """Tasks and data of one world. Splits are disjoint; every method is deterministic."""

    report: Mapping[str, Any]  # what was found, skipped and dropped: a run's data.json
    notes: Sequence[str]  # what of it must be said

    def prompts(self, split: Split) -> Sequence[Prompt]:
        """Distinct verifiable prompts of a split, in a fixed order."""
        ...

    def general_prompts(self, split: Split) -> Sequence[Prompt]:
        """Prompts of the kinds `general` and `harmful`, which only reward models can score."""
        ...

    def general_examples(self, count: int, seed: int) -> list[Example]:
        """Non-reasoning supervised data of the training split (R1's 200k): not all of it good."""
        ...

    def preference_pairs(self, split: Split, count: int, seed: int) -> list[PreferencePair]:
        """Judged pairs, near-misses and judging noise included."""
        ...

    def safety_examples(self, split: Split, count: int, seed: int) -> list[SafetyExample]:
        """Responses labelled safe or unsafe, labelling noise included."""
        ...

    def rewrite(self, chain: str, language: str) -> str:
        """A chain of thought rewritten into one language; unchanged where the source cannot translate."""
        ...

    def readable(self, chain: str, prompt: Prompt) -> str:
        r"""The cold start's pattern: the chain in `<think>`, then a summary that ends in the boxed answer."""
        ...

    def is_refusal(self, response: str) -> bool:
        """Whether a response declines the request."""
        ...
