"""The rollout engine: groups of completions from the policy's own parameters, on a paged cache that they share."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from typing import Any

import torch

from r1fast.memory import available_bytes
from r1fast.ops.checks import CHUNK_TOKENS
from r1fast.ops.page_pool import PagePool, PageTables
from r1fast.policy import Policy
from r1fast.records import Prompt
from r1fast.rollout.batch import ROW_MULTIPLE, DecodeBatch, padded
from r1fast.rollout.call import Call
from r1fast.rollout.cpu_layers import cpu_layers
from r1fast.rollout.engine_calls import EngineCalls
from r1fast.rollout.generation import Generation
from r1fast.rollout.guesses import Guesses, Tally
from r1fast.rollout.page_store import CacheShape, PageStore
from r1fast.sampling import Sampling

FREE_SHARE = 0.5  # of the memory that is free; activations, logits and the trainer want the rest


@dataclass(frozen=True)
class _Sizes:
    """What a decode batch has room for: rows, tokens of a completion and of a prompt."""

    rows: int
    completion_tokens: int
    prompt_tokens: int

    @staticmethod
    def of(call: Call, rows: int) -> _Sizes:
        """Tokens in whole chunks: that costs nothing, and the next call is likely to fit."""
        longest = (padded(tokens, CHUNK_TOKENS) for tokens in (call.longest_completion, call.longest_prompt))
        return _Sizes(padded(rows), *longest)

    def joined(self, other: _Sizes) -> _Sizes:
        return _Sizes(*map(max, astuple(self), astuple(other)))


@dataclass(frozen=True)
class _Seats:
    """Where sequences sit, kept from call to call; empty between them."""

    store: PageStore
    pool: PagePool
    batch: DecodeBatch

    @property
    def are_empty(self) -> bool:
        return (self.pool.num_free, self.pool.num_free_host) == (self.store.num_pages, self.store.num_host_pages)


class RolloutEngine(EngineCalls[Generation]):
    """Generates with at most `rows` sequences at a time; `seed` is the run's.

    `cache_bytes`: most memory of the paged cache (None: what a call can use at most, within half of what is free now).
    Sequences that find no room wait on the host. The weights are the trainer's own: nothing is copied, and a call uses
    them as they are. On a GPU decode steps are CUDA graphs, captured in the first call that needs them, unless
    `cuda_graphs` is False; they outlive calls and `sleep`. A step guesses up to `draft_tokens` tokens ahead where its
    rows and the guesses are `draft_rows` at most: samples stay the same, `tally` counts.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        rows: int,
        seed: int,
        threads: int = 0,
        cache_bytes: int | None = None,
        cuda_graphs: bool = True,
        draft_tokens: int = 0,
        draft_rows: int = ROW_MULTIPLE,
    ) -> None:
        if rows < 1:
            raise ValueError(f"rows must be at least 1, got {rows}; set rollout.rows to what memory allows")
        self.policy = policy
        self.rows = rows
        self.seed = seed
        self.threads = threads
        self.shape = CacheShape.of(policy)
        if cache_bytes is not None and cache_bytes < 2 * self.shape.page_bytes:
            raise ValueError(
                f"cache_bytes = {cache_bytes:,} must hold 2 pages at least, {2 * self.shape.page_bytes:,} bytes"
            )
        self.cache_bytes = cache_bytes
        self.cuda_graphs = cuda_graphs
        for name, value, least in (("draft_tokens", draft_tokens, 0), ("draft_rows", draft_rows, ROW_MULTIPLE)):
            if value < least or (least and value % least):
                need = f"a multiple of {least}" if least else "at least 0"
                raise ValueError(f"{name} = {value} must be {need}")
        self.draft_tokens, self.draft_rows = draft_tokens, draft_rows
        self.tally = Tally()
        self.store: PageStore | None = None
        self._seats: _Seats | None = None
        self._sizes = _Sizes(0, 0, 0)
        self._busy = False

    def sleep(self) -> None:
        """Give the cache's memory back; the next call takes it again. Nothing is cached between calls."""
        if self._busy:
            raise RuntimeError("a call of this engine is not used up: close() its iterator before the engine sleeps")
        if self.store is not None:
            self.store.sleep()

    def wake(self) -> None:
        """Take the memory back now, rather than at the next call."""
        if self.store is not None:
            self.store.wake()

    def _begin(
        self, prompts: list[Prompt], group_size: int, sampling: Sampling, max_tokens: Sequence[int] | None
    ) -> Generation:
        call = Call.of(prompts, group_size, sampling, self.seed, max_tokens)
        call.check(self.policy)
        if self._busy:
            raise RuntimeError("another call of this engine is not used up: close() its iterator, or use it up first")
        rows = min(self.rows, len(call.max_tokens))
        seats = self._seats_for(call, rows)
        seats.batch.prepare(sampling, rows)
        self._busy = True
        guesses = None
        if self.draft_tokens:
            guesses = Guesses(call, most=self.draft_tokens, rows=self.draft_rows, tally=self.tally)
        return Generation(self.policy, call, seats.batch, seats.pool, seats.store, rows=rows, guesses=guesses)

    def _layers(self) -> AbstractContextManager[None]:
        return cpu_layers(self.policy.module)

    def _end(self, running: Generation) -> None:
        running.close()
        self._busy = False
        if self._seats is not None:
            self._seats.batch.forget_weights()
        if self._seats is not None and not self._seats.are_empty:
            self._seats = None  # an interrupt between two lines: a sequence began that nobody knows

    def _seats_for(self, call: Call, rows: int) -> _Seats:
        """Those of the calls before, where the call fits and the cache is the same."""
        store, sizes = self._store(call, rows), _Sizes.of(call, rows).joined(self._sizes)
        if self._seats is not None and sizes == self._sizes:
            return self._seats
        self._seats, self._sizes = None, sizes  # first give back, then take
        tables: dict[str, Any] = {
            "num_rows": sizes.rows,
            "num_groups": sizes.rows,
            "max_suffix_tokens": sizes.completion_tokens,
            "max_prefix_tokens": sizes.prompt_tokens,
        }
        on_gpu = self.policy.device.type == "cuda"
        pool = PagePool(
            num_pages=store.num_pages,
            num_host_pages=store.num_host_pages,
            num_sequences=sizes.rows,
            pinned=on_gpu,
            **tables,
        )
        batch = DecodeBatch(
            self.policy,
            store,
            PageTables.allocate(**tables, device=self.policy.device) if on_gpu else pool.tables,
            max_tokens=sizes.completion_tokens,
            cuda_graphs=self.cuda_graphs,
            draft_rows=self.draft_rows if self.draft_tokens else 0,
        )
        self._seats = _Seats(store, pool, batch)
        return self._seats

    def _store(self, call: Call, rows: int) -> PageStore:
        """Pages for the call, on the device as many as memory allows; those of earlier calls where they suffice."""
        wanted = _size_class(call.pages_at_most(rows))
        if self.policy.device.type == "cuda" and (self.store is None or not self.store.awake):
            torch.cuda.empty_cache()  # what PyTorch keeps for later is not the driver's to give
        if self.store is None or self.store.num_pages + self.store.num_host_pages < wanted:
            self.store = self._seats = None  # first give back, then take
            num_pages = min(wanted, self._most_bytes() // self.shape.page_bytes)
            call.check_fits(num_pages, self.shape.page_bytes)
            self.store = PageStore(
                self.shape, num_pages=num_pages, num_host_pages=wanted - num_pages, device=self.policy.device
            )
        call.check_fits(self.store.num_pages, self.shape.page_bytes)
        self.store.wake()
        return self.store

    def _most_bytes(self) -> int:
        if self.cache_bytes is not None:
            return self.cache_bytes
        if self.policy.device.type == "cpu":
            return int(available_bytes() * FREE_SHARE)
        return int(torch.cuda.mem_get_info(self.policy.device)[0] * FREE_SHARE)


def _size_class(num_pages: int) -> int:
    """Rounded up by a sixteenth at most, so that prompts a little longer find the cache, and the graphs, of before."""
    step = 1 << max(0, num_pages.bit_length() - 5)
    return padded(num_pages, step)
