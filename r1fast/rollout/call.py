"""What one call of the engine asks for, checked, and cut into works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from r1fast.ops.checks import PAGE_TOKENS
from r1fast.policy import Policy
from r1fast.records import Prompt
from r1fast.sampling import Sampling, philox_key


def pages_for(num_tokens: int) -> int:
    """Pages of a segment."""
    return -(-num_tokens // PAGE_TOKENS)


@dataclass(frozen=True)
class Work:
    """Samples `first` to `first + count` of a prompt, which share its prefix."""

    prompt_index: int
    first: int
    count: int


@dataclass
class Call:
    """`max_tokens` of each sample, all of a prompt's samples side by side."""

    prompts: list[Prompt]
    group_size: int
    sampling: Sampling
    seed: int
    max_tokens: list[int]
    keys: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        sampling = self.sampling
        self.keys = [philox_key(self.seed, sampling.stage, sampling.visit, prompt.id) for prompt in self.prompts]

    @staticmethod
    def of(
        prompts: list[Prompt], group_size: int, sampling: Sampling, seed: int, max_tokens: Sequence[int] | None
    ) -> Call:
        """`max_tokens`: one for each sample, None for sampling.max_tokens. Raises ValueError."""
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        num_samples = len(prompts) * group_size
        limits = [sampling.max_tokens] * num_samples if max_tokens is None else list(max_tokens)
        if len(limits) != num_samples or min(limits) < 1:
            raise ValueError(f"max_tokens must be {num_samples} positive numbers, one for each sample")
        return Call(prompts, group_size, sampling, seed, limits)

    @property
    def longest_prompt(self) -> int:
        """Tokens."""
        return max(len(prompt.token_ids) for prompt in self.prompts)

    @property
    def longest_completion(self) -> int:
        """Tokens, at most."""
        return max(self.max_tokens)

    def pages_at_most(self, rows: int) -> int:
        """Pages of the most expensive batch of `rows` samples."""
        samples = sorted((pages_for(n) for n in self.max_tokens), reverse=True)[:rows]
        prefixes = sorted((pages_for(len(prompt.token_ids)) for prompt in self.prompts), reverse=True)[:rows]
        return sum(samples) + sum(prefixes)

    def works(self, rows: int, num_pages: int) -> list[Work]:
        """Whole groups where batch and cache have room for them, the ones that may take longest first."""
        order = sorted(range(len(self.prompts)), key=lambda index: (-self._longest(index), index))
        found = []
        for index in order:
            size = min(rows, num_pages - pages_for(len(self.prompts[index].token_ids)))
            found += [
                Work(index, first, min(size, self.group_size - first)) for first in range(0, self.group_size, size)
            ]
        return found

    def longest_of(self, work: Work) -> int:
        """Tokens of the longest completion, at most."""
        first = work.prompt_index * self.group_size + work.first
        return max(self.max_tokens[first : first + work.count])

    def _longest(self, index: int) -> int:
        return len(self.prompts[index].token_ids) + self.longest_of(Work(index, 0, self.group_size))

    def check(self, policy: Policy) -> None:
        """Raises ValueError for prompts that are empty, repeated, of other tokens or too long for the model."""
        limit = getattr(policy.module.config.get_text_config(), "max_position_embeddings", None)
        num_vocab = policy.num_vocab
        seen: set[str] = set()
        for index, prompt in enumerate(self.prompts):
            num_tokens = len(prompt.token_ids)
            if not num_tokens:
                raise ValueError(f"prompt {prompt.id!r} has no tokens; a completion needs at least one before it")
            if limit is not None and self._longest(index) > limit:
                raise ValueError(
                    f"prompt {prompt.id!r} has {num_tokens} tokens; with max_tokens = "
                    f"{self._longest(index) - num_tokens} that makes {self._longest(index)}, and the model has {limit} "
                    f"positions; lower max_tokens to at most {limit - num_tokens} or drop the prompt"
                )
            if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < num_vocab:
                raise ValueError(
                    f"prompt {prompt.id!r} has token ids from {min(prompt.token_ids)} to {max(prompt.token_ids)}, the "
                    f"model's are 0 to {num_vocab - 1}; tokenise with the model's own tokenizer"
                )
            if prompt.id in seen:
                raise ValueError(
                    f"prompt id {prompt.id!r} occurs twice in one call, and both would get the same samples; give "
                    "every occurrence its own id, or ask for a larger group"
                )
            seen.add(prompt.id)

    def check_window(self, num_tokens: int) -> None:
        """Raises ValueError for a sample that may become longer than the `num_tokens` another engine's cache holds."""
        for index, prompt in enumerate(self.prompts):
            if self._longest(index) > num_tokens:
                count = len(prompt.token_ids)
                raise ValueError(
                    f"prompt {prompt.id!r} of {count} tokens and max_tokens = {self._longest(index) - count} make "
                    f"{self._longest(index)}, and the rollout cache holds {num_tokens} of a sequence: raise "
                    "cache_bytes, lower max_tokens or drop the prompt"
                )

    def fault(self, sample: int, token: int, *, version: int, no_choice: bool) -> ValueError | FloatingPointError:
        """The error to raise where the `token`-th token (from 1) of a sample of the call could not be drawn."""
        index, number = divmod(sample, self.group_size)
        name = f"prompt {self.prompts[index].id!r}, sample {number}"
        if no_choice:
            return ValueError(
                f"{name}: no token may be drawn as token {token}; bad_token_ids and min_tokens leave none"
            )
        return FloatingPointError(
            f"{name}: the model's logits for its token {token} are not finite (policy version {version}): the weights "
            "have diverged; lower the learning rate, or continue from an earlier checkpoint"
        )

    def check_fits(self, num_pages: int, page_bytes: int) -> None:
        """Raises ValueError for a sample that the cache could not hold even alone."""
        for index, prompt in enumerate(self.prompts):
            longest = self._longest(index) - len(prompt.token_ids)
            wanted = pages_for(len(prompt.token_ids)) + pages_for(longest)
            if wanted > num_pages:
                raise ValueError(
                    f"prompt {prompt.id!r} of {len(prompt.token_ids)} tokens and max_tokens = {longest} take {wanted} "
                    f"pages of {PAGE_TOKENS} tokens, {wanted * page_bytes:,} bytes, and the rollout cache has "
                    f"{num_pages}, {num_pages * page_bytes:,} bytes: raise cache_bytes, lower max_tokens or drop the "
                    "prompt"
                )
