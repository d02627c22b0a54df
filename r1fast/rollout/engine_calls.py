"""What every rollout engine offers its callers, over the few steps in which engines differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Generic, Protocol, TypeVar

import torch

from r1fast.records import Prompt, Rollout
from r1fast.rollout.completions import Completions
from r1fast.rollout.cpu_threads import cpu_threads
from r1fast.sampling import Sampling

LOOK_EVERY = 8  # steps between two looks of the host


class Running(Protocol):
    """A call that has begun."""

    completions: Completions

    @property
    def unfinished(self) -> bool: ...

    def advance(self, steps: int) -> None:
        """At most `steps` tokens for each sequence in the batch, then see what has ended."""

    def tokens_of(self, sample: int) -> list[int]:
        """What a sample of the call has drawn so far."""


R = TypeVar("R", bound=Running)


class EngineCalls(ABC, Generic[R]):
    """`generate`, `groups` and `stream`; an engine says how a call begins, in which context it runs and how it ends.

    `beat` is called after every few steps, for whoever watches that there is progress. `on_sample` is shown every
    sample that ends before its group, for whoever can begin with it.
    """

    beat: Callable[[str], object] = len
    on_sample: Callable[[Rollout], object] | None = None

    threads: int  # of the CPU, see `cpu_threads`

    def generate(
        self, prompts: list[Prompt], group_size: int, sampling: Sampling, *, max_tokens: Sequence[int] | None = None
    ) -> list[Rollout]:
        """`group_size` completions of every prompt: all of the first prompt's, then all of the second's, and so on.

        A sample depends on the parameters, `sampling` and its key (seed, stage, visit, prompt id, sample index), and
        not on what else is in the call. `max_tokens`: one for each sample, in place of sampling.max_tokens. Raises
        ValueError for prompts that are empty, repeated or too long for the model or the cache, and FloatingPointError
        when the model's logits are not finite.
        """
        place = {prompt.id: index for index, prompt in enumerate(prompts)}
        groups = {place[group[0].prompt.id]: group for group in self.groups(prompts, group_size, sampling, max_tokens)}
        return [rollout for index in sorted(groups) for rollout in groups[index]]

    @torch.no_grad()
    def groups(
        self, prompts: list[Prompt], group_size: int, sampling: Sampling, max_tokens: Sequence[int] | None = None
    ) -> Generator[list[Rollout], None, None]:
        """The groups of `generate`, each as soon as its last sample has ended; raises like it, the whole groups first.

        Close it (or use it up) before the next call, and before the weights change: RuntimeError otherwise.
        """
        if not prompts:
            return
        running = self._begin(prompts, group_size, sampling, max_tokens)
        try:
            with self._layers():
                while running.unfinished:
                    fault = None
                    try:
                        with cpu_threads(self.threads):
                            running.advance(LOOK_EVERY)
                    except Exception as error:  # some groups may have ended before it
                        fault = error
                    self.beat("decode steps")
                    yield from running.completions.take_finished()
                    self._show_samples(running)
                    if fault is not None:
                        raise fault
                    running.completions.check_version()
        finally:
            self._end(running)

    def _show_samples(self, running: R) -> None:
        if self.on_sample is not None:
            for rollout in running.completions.take_ended():
                self.on_sample(rollout)

    @torch.no_grad()
    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[int]:
        """The token ids of `generate([prompt], 1, sampling)`, each as soon as it is drawn; raises like it."""
        running = self._begin([prompt], 1, sampling, None)
        num_shown = 0
        try:
            with self._layers():
                while running.unfinished:
                    with cpu_threads(self.threads):
                        running.advance(1)
                    token_ids = running.tokens_of(0)
                    yield from token_ids[num_shown:]
                    num_shown = len(token_ids)
        finally:
            self._end(running)

    @abstractmethod
    def _begin(
        self, prompts: list[Prompt], group_size: int, sampling: Sampling, max_tokens: Sequence[int] | None
    ) -> R: ...

    @abstractmethod
    def _layers(self) -> AbstractContextManager[None]:
        """Around all steps of a call."""

    @abstractmethod
    def _end(self, running: R) -> None:
        """Also after an exception in the middle of a step."""
