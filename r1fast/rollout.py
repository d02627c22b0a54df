"""Completions from the policy's own parameters: prompts run once a group, decoding in one batch that is kept full."""

# R rows of a decode batch, N samples of a call, T packed prompt tokens, V vocab, D model, B positions in a block

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from r1fast.attention import PackedContext
from r1fast.kv_cache import DecodeContext, KVCache, PrefillContext, PromptSpan
from r1fast.packing import position_ids
from r1fast.policy import Policy
from r1fast.records import Prompt, Rollout
from r1fast.sampling import Draw, Sampling, draw, philox_key, uniforms

ROW_MULTIPLE = 16  # fp32 products on a CPU differ bitwise at fewer rows, and a sample would depend on its batch
LENGTH_MULTIPLE = 16  # softmax sums by vectors: trailing zeros then add nothing
PREFILL_TOKENS = 16384  # of one packed prompt batch; a longer prompt makes a batch of its own
UNIFORM_BLOCK = 256  # positions whose random numbers are made at once
REFILL_SHARE = 8  # wait for 1 / 8 of the rows to be free, so that prompts run in larger batches

IntArray = npt.NDArray[np.int64]


class RolloutEngine:
    """Generates with at most `rows` sequences at a time; `seed` is the run's."""

    def __init__(self, policy: Policy, *, rows: int, seed: int) -> None:
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}; set rl.rollout_rows to what memory allows")
        self.policy = policy
        self.rows = rows
        self.seed = seed

    @torch.no_grad()
    def generate(self, prompts: list[Prompt], group_size: int, sampling: Sampling) -> list[Rollout]:
        """`group_size` completions of every prompt: all of the first prompt's, then all of the second's, and so on.

        A sample depends on the parameters, `sampling` and its key (seed, stage, visit, prompt id, sample index), and
        not on what else is in the call. Raises ValueError for prompts that are empty, repeated or too long for the
        model, and FloatingPointError when the model's logits are not finite.
        """
        if group_size < 1:
            raise ValueError(f"group_size must be at least 1, got {group_size}")
        _check_prompts(prompts, self.policy, sampling)
        if not prompts:
            return []
        generation = _Generation(self.policy, prompts, group_size, sampling, rows=self.rows, seed=self.seed)
        while generation.unfinished:
            generation.admit()
            generation.step()
        return generation.rollouts()

    @torch.no_grad()
    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[int]:
        """The token ids of `generate([prompt], 1, sampling)`, each as soon as it is drawn; raises like it."""
        _check_prompts([prompt], self.policy, sampling)
        generation = _Generation(self.policy, [prompt], 1, sampling, rows=self.rows, seed=self.seed)
        generation.admit()
        while True:
            yield int(generation.history[-1].drawn.token[0])
            if not generation.unfinished:
                generation.rollouts()  # raises for logits that are not finite
                return
            generation.step()


@dataclass(frozen=True)
class _Work:
    """Samples `first` to `first + count` of a prompt, which share its prefill."""

    prompt_index: int
    first: int
    count: int


@dataclass(frozen=True)
class _Tokens:
    """What one step drew: the sample of each row (-1: none), the token's number in its completion, the draws."""

    sample: IntArray
    number: IntArray
    drawn: Draw


class _Generation:
    """One call of `generate`.

    Rows 0 to `num_rows` are in use; the sample of a row is -1 once it has ended. A row's `token` is the one drawn
    last, which has not been through the model, `position` its place, `num_drawn` the completion's length so far.
    """

    def __init__(
        self, policy: Policy, prompts: list[Prompt], group_size: int, sampling: Sampling, *, rows: int, seed: int
    ) -> None:
        self.policy, self.prompts, self.group_size, self.sampling = policy, prompts, group_size, sampling
        num_samples = len(prompts) * group_size
        self.rows = min(rows, num_samples)
        self.waiting = deque(
            _Work(index, first, min(self.rows, group_size - first))
            for index in range(len(prompts))
            for first in range(0, group_size, self.rows)
        )
        capacity = _pad(self.rows)
        longest = max(len(prompt.token_ids) for prompt in prompts)
        self.cache = KVCache(rows=capacity, max_length=_pad(longest + sampling.max_tokens, LENGTH_MULTIPLE))
        self.head_DV = _head(policy)
        self.is_eos = np.zeros(policy.head_weight.shape[0], dtype=bool)
        self.is_eos[[token for token in policy.eos_token_ids if token < len(self.is_eos)]] = True

        self.num_rows = 0
        self.num_live = 0
        self.sample: IntArray = np.full(capacity, -1, dtype=np.int64)
        self.token: IntArray = np.zeros(capacity, dtype=np.int64)
        self.position: IntArray = np.zeros(capacity, dtype=np.int64)
        self.num_drawn: IntArray = np.zeros(capacity, dtype=np.int64)
        self.uniform = np.zeros((capacity, min(sampling.max_tokens, UNIFORM_BLOCK)))
        self.prompt_key = np.array(
            [philox_key(seed, sampling.stage, sampling.visit, prompt.id) for prompt in prompts], dtype=np.uint64
        )
        self.history: list[_Tokens] = []
        self.length: IntArray = np.zeros(num_samples, dtype=np.int64)

    @property
    def unfinished(self) -> bool:
        return self.num_live > 0 or len(self.waiting) > 0

    def admit(self) -> None:
        """Give free rows to waiting prompts, when enough are free to be worth a prefill."""
        while self.waiting:
            free = self.rows - self.num_live
            if free < self.waiting[0].count or (self.num_live and free < self.rows // REFILL_SHARE):
                return
            self._compact()
            work = [self.waiting.popleft()]
            free -= work[0].count
            num_tokens = len(self.prompts[work[0].prompt_index].token_ids)
            while self.waiting and self.waiting[0].count <= free:
                num_tokens += len(self.prompts[self.waiting[0].prompt_index].token_ids)
                if num_tokens > PREFILL_TOKENS:
                    break
                free -= self.waiting[0].count
                work.append(self.waiting.popleft())
            self._prefill(work)

    def step(self) -> None:
        """One token for every row in use."""
        if not self.num_live:
            return
        num_rows = _pad(self.num_rows)
        live = self.sample[: self.num_rows] >= 0
        length = _pad(int(self.position[: self.num_rows][live].max()) + 1, LENGTH_MULTIPLE)
        position_R = self._to_device(self.position[:num_rows])
        hidden_RD = self._backbone(
            self._to_device(self.token[:num_rows])[:, None],
            position_R[:, None],
            DecodeContext(self.cache, position_R, length),
        )[:, 0]
        self._draw(_logits(hidden_RD, self.head_DV), slice(0, self.num_rows))
        if _pad(self.num_live) < num_rows:
            self._compact()

    def _prefill(self, work: list[_Work]) -> None:
        """Run the prompts, packed, write their keys and values, and draw the first tokens of their rows."""
        prompt_token_ids = [self.prompts[item.prompt_index].token_ids for item in work]
        first_row = self.num_rows
        spans: list[PromptSpan] = []
        for item, token_ids in zip(work, prompt_token_ids, strict=True):
            start, row = spans[-1].end if spans else 0, self.num_rows
            rows = slice(row, row + item.count)
            spans.append(PromptSpan(start, start + len(token_ids), rows))
            indices = np.arange(item.first, item.first + item.count)
            self.sample[rows] = item.prompt_index * self.group_size + indices
            self.position[rows] = len(token_ids) - 1
            self.num_drawn[rows] = 0
            self.num_rows += item.count
        self.num_live += self.num_rows - first_row
        self._draw_uniforms(np.arange(first_row, self.num_rows))

        bounds = [0, *(span.end for span in spans)]
        padding = _pad(bounds[-1]) - bounds[-1]  # a last sequence that nobody reads
        flat = [token for token_ids in prompt_token_ids for token in token_ids] + [0] * padding
        cu_seqlens = torch.tensor(bounds + [len(flat)] * (padding > 0), dtype=torch.int32)
        hidden_TD = self._backbone(
            self._to_device(np.array(flat, dtype=np.int64))[None],
            position_ids(cu_seqlens).to(self.policy.device)[None],
            PrefillContext(self.cache, PackedContext(cu_seqlens, self.policy.device), spans),
        )[0]
        last = np.zeros(_pad(len(spans)), dtype=np.int64)
        last[: len(spans)] = [span.end - 1 for span in spans]
        logits = _logits(hidden_TD[self._to_device(last)], self.head_DV)
        prompt_of_row = np.zeros(_pad(self.num_rows - first_row), dtype=np.int64)
        prompt_of_row[: self.num_rows - first_row] = np.repeat(np.arange(len(work)), [item.count for item in work])
        self._draw(logits[self._to_device(prompt_of_row)], slice(first_row, self.num_rows))

    def _draw(self, logits_RV: Tensor, rows: slice) -> None:
        """Draw for `rows` (the logits have padding rows after them), note the tokens and end what has ended."""
        count = rows.stop - rows.start
        block = self.uniform.shape[1]
        number = self.num_drawn[rows].copy()
        sample = self.sample[rows].copy()
        live = sample >= 0
        if self.sampling.max_tokens > block:
            self._draw_uniforms(rows.start + np.flatnonzero(live & (number % block == 0) & (number > 0)))
        uniform_R = np.zeros(len(logits_RV))
        uniform_R[:count] = self.uniform[np.arange(rows.start, rows.stop), number % block]
        drawn = draw(logits_RV, self._to_device(uniform_R), self.sampling)
        drawn = Draw(*(value[:count] for value in drawn))
        self.history.append(_Tokens(sample, number, drawn))

        token = drawn.token.cpu().numpy()
        self.token[rows] = token
        self.position[rows] += live
        self.num_drawn[rows] += live
        ended = live & (self.is_eos[token] | (self.num_drawn[rows] >= self.sampling.max_tokens))
        self.length[sample[ended]] = self.num_drawn[rows][ended]
        self.sample[rows][ended] = -1
        self.num_live -= int(ended.sum())

    def _compact(self) -> None:
        """Move the last live rows into the rows that have ended, so that rows 0 to `num_live` are live."""
        live = np.flatnonzero(self.sample[: self.num_rows] >= 0)
        target = np.flatnonzero(self.sample[: self.num_live] < 0)
        source = live[live >= self.num_live]
        if len(source):
            self.cache.move(source, target, int(self.position[source].max()))
            for state in (self.sample, self.token, self.position, self.num_drawn, self.uniform):
                state[target] = state[source]
        self.sample[self.num_live : self.num_rows] = -1
        self.position[self.num_live : self.num_rows] = 0
        self.num_rows = self.num_live

    def _draw_uniforms(self, rows: IntArray) -> None:
        """The random numbers of the block of positions that begins at each row's next token."""
        if len(rows):
            prompt_index, sample_index = np.divmod(self.sample[rows], self.group_size)
            self.uniform[rows] = uniforms(
                self.prompt_key[prompt_index], sample_index.astype(np.uint64), self.num_drawn[rows].astype(np.uint64),
                self.uniform.shape[1],
            )  # fmt: skip

    def _backbone(self, token_ids: Tensor, positions: Tensor, context: PrefillContext | DecodeContext) -> Tensor:
        outputs: Any = self.policy.module.base_model(
            input_ids=token_ids, position_ids=positions, use_cache=False, attention_context=context
        )
        hidden: Tensor = outputs.last_hidden_state
        return hidden

    def _to_device(self, array: npt.NDArray[Any]) -> Tensor:
        """Shares the array's memory on a CPU: for reading, before the array changes."""
        return torch.from_numpy(array).to(self.policy.device)

    def rollouts(self) -> list[Rollout]:
        sample = np.concatenate([tokens.sample for tokens in self.history])
        number = np.concatenate([tokens.number for tokens in self.history])
        order = np.lexsort((number, sample))[int((sample < 0).sum()) :]  # by sample, then in order
        columns = (torch.cat(values).cpu()[order] for values in zip(*(t.drawn for t in self.history), strict=True))
        token, logp, log_kept_mass, entropy = columns
        finite = torch.isfinite(logp)
        if not bool(finite.all()):
            bad = int(sample[order][int((~finite).nonzero()[0, 0])])
            raise FloatingPointError(
                f"the model's logits are not finite (first for prompt {self.prompts[bad // self.group_size].id!r}, "
                f"policy version {self.policy.version}): the weights have diverged; lower the learning rate, or "
                "continue from an earlier checkpoint"
            )
        sizes = self.length.tolist()
        parts = zip(*(torch.split(column, sizes) for column in (token, logp, log_kept_mass, entropy)), strict=True)
        texts = self._texts(torch.split(token, sizes))
        return [
            Rollout(
                prompt=self.prompts[n // self.group_size],
                sample_index=n % self.group_size,
                token_ids=part[0].clone(),  # its own memory: a view would pickle the tokens of the whole call
                logp=part[1].clone(),
                log_kept_mass=part[2].clone(),
                entropy=part[3].clone(),
                text=text,
                finish_reason="stop" if self.is_eos[int(part[0][-1])] else "length",
                policy_version=self.policy.version,
            )
            for n, (part, text) in enumerate(zip(parts, texts, strict=True))
        ]

    def _texts(self, completions: tuple[Tensor, ...]) -> list[str]:
        """Decoded without end and padding tokens; tags such as <think> stay even where they are special tokens."""
        tokenizer: Any = self.policy.tokenizer
        dropped = {*self.policy.eos_token_ids, tokenizer.pad_token_id}
        kept = [[token for token in ids.tolist() if token not in dropped] for ids in completions]
        texts: list[str] = tokenizer.batch_decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return texts


def _pad(count: int, multiple: int = ROW_MULTIPLE) -> int:
    return -(-count // multiple) * multiple


def _head(policy: Policy) -> Tensor:
    """[D, V] in the dtype that `_logits` multiplies in: fp32 on a CPU, which has no bf16 product with fp32 results."""
    weight = policy.head_weight.detach()
    return (weight.float() if weight.device.type == "cpu" else weight).T


def _logits(hidden_RD: Tensor, head_DV: Tensor) -> Tensor:
    """fp32 [R, V], never rounded to a shorter dtype on the way."""
    if head_DV.dtype == torch.float32:
        return hidden_RD.float() @ head_DV
    return torch.mm(hidden_RD, head_DV, out_dtype=torch.float32)


def _check_prompts(prompts: list[Prompt], policy: Policy, sampling: Sampling) -> None:
    limit = getattr(policy.module.config.get_text_config(), "max_position_embeddings", None)
    num_vocab = policy.head_weight.shape[0]
    seen: set[str] = set()
    for prompt in prompts:
        num_tokens = len(prompt.token_ids)
        if not num_tokens:
            raise ValueError(f"prompt {prompt.id!r} has no tokens; a completion needs at least one before it")
        if limit is not None and num_tokens + sampling.max_tokens > limit:
            raise ValueError(
                f"prompt {prompt.id!r} has {num_tokens} tokens; with max_tokens = {sampling.max_tokens} that makes "
                f"{num_tokens + sampling.max_tokens}, and the model has {limit} positions; lower max_tokens to at most "
                f"{limit - num_tokens} or drop the prompt"
            )
        if not 0 <= min(prompt.token_ids) <= max(prompt.token_ids) < num_vocab:
            raise ValueError(
                f"prompt {prompt.id!r} has token ids from {min(prompt.token_ids)} to {max(prompt.token_ids)}, the "
                f"model's are 0 to {num_vocab - 1}; tokenise with the model's own tokenizer"
            )
        if prompt.id in seen:
            raise ValueError(
                f"prompt id {prompt.id!r} occurs twice in one call, and both would get the same samples; give every "
                "occurrence its own id, or ask for a larger group"
            )
        seen.add(prompt.id)
