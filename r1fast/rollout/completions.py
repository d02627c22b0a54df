"""What has ended of a call, its text, and the groups that are whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from r1fast.policy import Policy
from r1fast.records import Rollout
from r1fast.rollout.batch import Ended
from r1fast.rollout.call import Call


class Completions:
    """`ended`: the samples whose groups are not whole yet."""

    def __init__(self, policy: Policy, call: Call) -> None:
        self.policy, self.call, self.version = policy, call, policy.version
        self.ended: dict[int, Ended] = {}
        self._missing = [call.group_size] * len(call.prompts)
        self._finished: deque[int] = deque()
        self._fresh: deque[int] = deque()
        self._shown: dict[int, Rollout] = {}

    def add(self, sample: int, ended: Ended) -> None:
        """A sample of the call has ended."""
        self.ended[sample] = ended
        self._fresh.append(sample)
        index = sample // self.call.group_size
        self._missing[index] -= 1
        if not self._missing[index]:
            self._finished.append(index)

    def take_finished(self) -> Iterator[list[Rollout]]:
        """The groups that are whole since the last call, each in the order of its samples."""
        while self._finished:
            yield self._rollouts(self._finished.popleft())

    def take_ended(self) -> Iterator[Rollout]:
        """The samples that have ended since the last call, of groups that are not whole; they keep the objects."""
        while self._fresh:
            sample = self._fresh.popleft()
            if sample in self.ended:
                shown = self._shown[sample] = self._rollout(sample, self.ended[sample])
                yield shown

    def check_version(self) -> None:
        """Raises RuntimeError where the weights have changed in the middle of the call."""
        if self.policy.version != self.version:
            raise RuntimeError(
                f"the policy went from version {self.version} to {self.policy.version} while it drew "
                "completions; use the groups up before the optimizer steps"
            )

    def stopped_at(self, token_ids: list[int], num_seen: int) -> int:
        """How many tokens there are up to the one that completes a stop string, 0 where there is none.

        The first `num_seen` are known to have none.
        """
        sampling = self.call.sampling

        def found(count: int) -> bool:
            return any(text in self.text(token_ids[:count]) for text in sampling.stop)

        if not found(len(token_ids)):
            return 0
        counts = range(max(num_seen + 1, sampling.min_tokens, 1), len(token_ids) + 1)
        return next((count for count in counts if found(count)), 0)

    def text(self, token_ids: list[int]) -> str:
        """Decoded without end and padding tokens; tags such as <think> stay even where they are special tokens."""
        tokenizer: Any = self.policy.tokenizer
        dropped = {*self.policy.eos_token_ids, tokenizer.pad_token_id}
        kept = [token for token in token_ids if token not in dropped]
        text: str = tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _rollouts(self, prompt_index: int) -> list[Rollout]:
        size = self.call.group_size
        samples = range(prompt_index * size, (prompt_index + 1) * size)
        ended = [(sample, self.ended.pop(sample)) for sample in samples]
        shown = self._shown
        return [shown.pop(sample) if sample in shown else self._rollout(sample, part) for sample, part in ended]

    def _rollout(self, sample: int, ended: Ended) -> Rollout:
        prompt_index, index = divmod(sample, self.call.group_size)
        return Rollout(
            prompt=self.call.prompts[prompt_index],
            sample_index=index,
            token_ids=ended.token_ids,
            logp=ended.logp,
            log_kept_mass=ended.log_kept_mass,
            entropy=ended.entropy,
            text=self._before_stop(self.text(ended.token_ids.tolist())),
            finish_reason="stop" if ended.by_token else "length",
            policy_version=self.version,
            max_tokens=self.call.max_tokens[sample],
        )

    def _before_stop(self, text: str) -> str:
        places = [place for stop in self.call.sampling.stop if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text
