"""The rollout engine's interface on vLLM, in the trainer's processes: for models that the paged cache refuses.

It has a copy of the weights beside the trainer's, so memory holds them twice, and they are pushed whenever they have
changed; a canary prompt is compared after every push. Tokens are drawn by our sampler from vLLM's logits, so a Rollout
means what it means on the paged cache, key by key. What differs is rounding: vLLM computes logits in the model's dtype
and by other kernels for other batches. In bf16 that makes other samples, and log-probs that are further from the
trainer's (the metrics say how far); runs repeat on the same machine, and a resumed run need not be bitwise the same.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch

from r1fast.distributed import Ranks
from r1fast.ops.checks import PAGE_TOKENS
from r1fast.policy import Policy
from r1fast.records import Prompt, Rollout
from r1fast.rollout.call import Call
from r1fast.rollout.canary import Canary
from r1fast.rollout.completions import Completions
from r1fast.rollout.engine_calls import EngineCalls
from r1fast.rollout.vllm_draw import Book, Draws
from r1fast.rollout.vllm_model import BLOCK_TOKENS, VllmModel, cache_bytes_for, check_vllm
from r1fast.rollout_checks import check_teams
from r1fast.sampling import Sampling


class VllmEngine(EngineCalls["_Running"]):
    """`RolloutEngine` on vLLM: the same calls, the same records. It starts with the first call.

    `rows`: most sequences at a time; `cache_bytes`: of vLLM's KV cache (None: as much as the calls can use, within half
    of what is free; vLLM starts anew for the first call that can use more). Of several processes `tensor_parallel`
    neighbours are a team: each gives prompts of its own and gets their groups, all of them compute each other's. Every
    method is collective over all processes then. Raises ValueError where vLLM is not installed.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        rows: int,
        seed: int,
        threads: int = 0,
        cache_bytes: int | None = None,
        ranks: Ranks | None = None,
        tensor_parallel: int = 1,
    ) -> None:
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}; set rollout.rows to what memory allows")
        check_vllm()
        self.policy, self.rows, self.seed, self.cache_bytes = policy, rows, seed, cache_bytes
        self.threads, self.ranks, self.tensor_parallel = threads, ranks or Ranks(), tensor_parallel
        check_teams(tensor_parallel, self.ranks.world_size)
        self.canary = Canary.of(policy)
        self.num_pushes = 0
        self._own: dict[str, Prompt] = {}  # of the call, by id
        self._book = Book()
        self._cache_tokens = BLOCK_TOKENS * (rows + 1)  # that vLLM is started for
        self._model: VllmModel | None = None
        self._pushed: Any = None  # which weights vLLM has
        self._busy = False

    def sleep(self) -> None:
        """End vLLM, which gives back the memory of its cache and of its weights; the next call starts it anew."""
        if self._busy:
            raise RuntimeError("a call of this engine is not used up: close() its iterator before the engine sleeps")
        self._drop()

    def close(self) -> None:
        """As `sleep`, also in the middle of a call, which cannot go on then."""
        self._drop()

    def wake(self) -> None:
        """Start vLLM and push the weights now, rather than at the next call."""
        self._ready()

    @torch.no_grad()
    def groups(
        self, prompts: list[Prompt], group_size: int, sampling: Sampling, max_tokens: Sequence[int] | None = None
    ) -> Generator[list[Rollout], None, None]:
        """See `EngineCalls.groups`; a prompt may be asked for by one process of a team."""
        if self.ranks.world_size == 1:
            yield from super().groups(prompts, group_size, sampling, max_tokens)
            return
        limits = list(max_tokens) if max_tokens is not None else [sampling.max_tokens] * (len(prompts) * group_size)
        asked = self.ranks.gather_objects([(Prompt(id=p.id, text="", token_ids=p.token_ids)) for p in prompts])
        given = self.ranks.gather_objects(limits)
        teams = [slice(first, first + self.tensor_parallel) for first in range(0, len(asked), self.tensor_parallel)]
        calls = [
            Call.of(list(chain(*asked[team])), group_size, sampling, self.seed, list(chain(*given[team])))
            for team in teams
            if any(asked[team])
        ]
        if not calls:
            return
        # what is pushed is everyone's, and a team's caches are of one size: all start anew, or none does
        self._ready(max(self._tokens_at_most(call) for call in calls))
        team = teams[self.ranks.rank // self.tensor_parallel]
        own = self._own = {prompt.id: prompt for prompt in prompts}
        everyone = list(chain(*asked[team]))
        for group in super().groups(everyone, group_size, sampling, list(chain(*given[team]))):
            if prompt := own.get(group[0].prompt.id):
                yield [replace(rollout, prompt=prompt) for rollout in group]

    def _show_samples(self, running: _Running) -> None:
        if self.ranks.world_size == 1:
            super()._show_samples(running)
        elif self.on_sample is not None:
            for rollout in running.completions.take_ended():
                if prompt := self._own.get(rollout.prompt.id):  # else it is another process's
                    self.on_sample(replace(rollout, prompt=prompt))

    def _begin(
        self, prompts: list[Prompt], group_size: int, sampling: Sampling, max_tokens: Sequence[int] | None
    ) -> _Running:
        call = Call.of(prompts, group_size, sampling, self.seed, max_tokens)
        call.check(self.policy)
        if self._busy:
            raise RuntimeError("another call of this engine is not used up: close() its iterator, or use it up first")
        model = self._ready(self._tokens_at_most(call))
        call.check_window(model.max_tokens)
        running = _Running(self.policy, call, model)
        self._busy, self._book.current = True, running.draws
        try:
            running.queue()
        except BaseException:
            self._drop()
            self._end(running)
            raise
        return running

    def _tokens_at_most(self, call: Call) -> int:
        """Of the most expensive batch, each sample's last block whole."""
        rows = min(self.rows, len(call.max_tokens))
        return call.pages_at_most(rows) * PAGE_TOKENS + (rows + 1) * BLOCK_TOKENS

    def _ready(self, cache_tokens: int = 0) -> VllmModel:
        """vLLM with the trainer's weights as they are now, compared."""
        if cache_tokens > self._cache_tokens:
            self._cache_tokens = cache_tokens
            if self.cache_bytes is None:
                self._drop()
        if self._model is None:
            ranks, team = self.ranks, self.tensor_parallel
            cache_bytes = self.cache_bytes or cache_bytes_for(self.policy, self._cache_tokens, ranks, team)
            self._model = VllmModel(
                self.policy,
                rows=self.rows,
                cache_bytes=cache_bytes,
                book=self._book,
                ranks=ranks,
                tensor_parallel=team,
            )
            self._pushed = None
            self.canary.forget()
        weights = self._weights()
        if weights != self._pushed:
            self._pushed = None  # until it is known to have arrived
            self._model.push(self.policy)
            self.num_pushes += 1
            self.canary.compare(self._canary_logp(self._model))
            self._pushed = weights
        return self._model

    def _canary_logp(self, model: VllmModel) -> torch.Tensor:
        try:
            return model.logp(self.canary.token_ids)
        except RuntimeError as error:  # what its kernels lack shows in the first forward
            self._drop()
            first_line = str(error).strip().splitlines()[0]
            name = type(self.policy.module).__name__
            raise RuntimeError(f"vLLM failed on the canary prompt of {name} ({first_line})") from error

    def _weights(self) -> Any:
        """Changes with every step and every write in place; alike on every process where they share the weights."""
        if self.policy.shards is not None:
            return self.policy.version, self.policy.shards.num_sets
        return self.policy.version, [(p.data_ptr(), p._version) for p in self.policy.module.parameters()]

    def _layers(self) -> AbstractContextManager[None]:
        return nullcontext()  # vLLM has its own

    def _end(self, running: _Running) -> None:
        self._busy, self._book.current = False, None
        if running.is_stepping:  # vLLM may have been in the middle of something: it cannot go on
            self._drop()
        if self._model is not None:
            self._model.abort(running.missing)

    def _drop(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.close()


class _Running:
    """One call. `missing`: its samples that have not ended; `is_stepping` stays true where a step has raised."""

    def __init__(self, policy: Policy, call: Call, model: VllmModel) -> None:
        self.call, self.model = call, model
        self.completions = Completions(policy, call)
        self._eos = [token for token in policy.eos_token_ids if token < policy.num_vocab]
        self.draws = Draws(call, tuple(self._eos))
        self.is_stepping = False
        self._num_read = dict.fromkeys(range(len(call.max_tokens)), 0)  # tokens that have no stop string

    def queue(self) -> None:
        """All samples, whole groups, the ones that may take longest first: vLLM takes them in this order."""
        call = self.call
        for work in call.works(len(call.max_tokens), 1 << 62):
            token_ids = call.prompts[work.prompt_index].token_ids
            for index in range(work.first, work.first + work.count):
                sample = work.prompt_index * call.group_size + index
                self.model.begin(sample, token_ids, max_tokens=call.max_tokens[sample], eos=self._eos)

    @property
    def unfinished(self) -> bool:
        return bool(self._num_read)

    @property
    def missing(self) -> list[int]:
        """In the order of the call."""
        return list(self._num_read)

    def tokens_of(self, sample: int) -> list[int]:
        """What a sample of the call has drawn so far."""
        ended = self.completions.ended.get(sample)
        return self.draws.tokens(sample) if ended is None else [int(token) for token in ended.token_ids]

    def advance(self, steps: int) -> None:
        """At most `steps` tokens for each sequence in the batch, then look for stop strings."""
        self.is_stepping = True
        self._run(steps)
        self.is_stepping = False

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            ended = self.model.step()
            self.draws.raise_fault(self.completions.version)
            for sample, token_ids in ended:
                self._check(sample, token_ids)
                if not self._stop(sample):
                    self._finish(sample, len(token_ids), by_token=token_ids[-1] in self._eos)
            if not self._num_read:
                return
        if self.call.sampling.stop:
            self.model.abort([sample for sample in self.missing if self._stop(sample)])

    def _stop(self, sample: int) -> bool:
        """Whether a stop string has ended the sample."""
        token_ids = self.draws.tokens(sample)
        if not (self.call.sampling.stop and token_ids):
            return False
        seen, self._num_read[sample] = self._num_read[sample], len(token_ids)
        stop = self.completions.stopped_at(token_ids, seen)
        if stop:
            self._finish(sample, stop, by_token=True)
        return bool(stop)

    def _finish(self, sample: int, num_tokens: int, *, by_token: bool) -> None:
        del self._num_read[sample]
        self.completions.add(sample, self.draws.take(sample, num_tokens, by_token=by_token))

    def _check(self, sample: int, token_ids: list[int]) -> None:
        drawn = self.draws.tokens(sample)
        if drawn != token_ids:
            place = next((n for n, pair in enumerate(zip(drawn, token_ids, strict=False)) if pair[0] != pair[1]), -1)
            raise RuntimeError(
                f"sample {sample}: vLLM returned {len(token_ids)} tokens, {len(drawn)} were drawn from its logits, and "
                f"they differ at {place}: this version of vLLM asks its logits processors in another way"
            )
