"""Who has which page of the cache: groups that share a prompt, the sequences that continue it, what is on the host.

A sequence is two segments, each in pages of 64 tokens counted from its own start: its group's prefix, which all
members read, and its own suffix. Nothing is copied when a group's samples begin; a fork in mid-generation shares pages
until one of both writes. The pool keeps the page tables and lengths that decode_plan and paged_decode read. It moves no
data: what it returns as PageMoves goes to kv_copy or kv_swap at once, before anything else is written to the cache.
"""

# S rows of the batch, G groups, M pages of a table's row

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from r1fast.ops.checks import PAGE_TOKENS, check_tensor
from r1fast.ops.extension import extension

NO_GROUP = -1


class PoolExhausted(RuntimeError):
    """A refusal: too few pages or places are free now. The pool is as it was; the message has the numbers."""


@dataclass(frozen=True)
class PageMoves:
    """Pages to copy, int32 on the CPU: the contents of `source[i]` belong to `destination[i]`."""

    source: Tensor
    destination: Tensor

    def __len__(self) -> int:
        return self.source.shape[0]


@dataclass(frozen=True)
class Segment:
    """Pages of a prefix or of a sequence's own tokens, in order; host pages where it is swapped out."""

    pages: list[int]
    num_tokens: int
    on_host: bool


@dataclass(frozen=True, kw_only=True)
class PageTables:
    """What decode_plan and paged_decode read, all int32; -1 where there is no page or no group."""

    suffix_pages_SM: Tensor
    prefix_pages_GM: Tensor
    suffix_length_S: Tensor
    group_S: Tensor
    prefix_length_G: Tensor

    @classmethod
    def allocate(
        cls,
        *,
        num_rows: int,
        num_groups: int,
        max_suffix_tokens: int,
        max_prefix_tokens: int,
        device: torch.device | str = "cpu",
        pinned: bool = False,
    ) -> PageTables:
        """Tables for rows of `max_suffix_tokens` and prefixes of `max_prefix_tokens`, multiples of 64. ValueError."""
        for name, value in (("max_suffix_tokens", max_suffix_tokens), ("max_prefix_tokens", max_prefix_tokens)):
            if value < 0 or value % PAGE_TOKENS:
                raise ValueError(f"{name} = {value} must be a multiple of {PAGE_TOKENS}, not negative")
        if num_rows < 1 or num_groups < 0:
            raise ValueError(f"num_rows = {num_rows} must be positive, num_groups = {num_groups} not negative")

        def empty(fill: int, *shape: int) -> Tensor:
            return torch.full(shape, fill, dtype=torch.int32, device=device, pin_memory=pinned)

        return cls(
            suffix_pages_SM=empty(-1, num_rows, max_suffix_tokens // PAGE_TOKENS),
            prefix_pages_GM=empty(-1, num_groups, max_prefix_tokens // PAGE_TOKENS),
            suffix_length_S=empty(0, num_rows),
            group_S=empty(-1, num_rows),
            prefix_length_G=empty(0, num_groups),
        )


class PagePool:
    """Pages, groups and sequences; `tables` is current after every call.

    Groups and sequences are handles (integers); a stale one is a ValueError: freed twice, or used after it was freed.
    What does not fit now raises PoolExhausted and changes nothing. Not for several threads at once.
    """

    def __init__(
        self,
        *,
        num_pages: int,
        num_sequences: int,
        num_rows: int,
        num_groups: int,
        max_suffix_tokens: int,
        max_prefix_tokens: int,
        num_host_pages: int = 0,
        pinned: bool = False,
    ) -> None:
        """`num_sequences` may live at once, `num_rows` of them in the batch. `pinned`: tables in page-locked memory."""
        most = {"num_pages": num_pages, "num_host_pages": num_host_pages, "num_sequences": num_sequences}
        for name, value in most.items():
            if not 0 <= value < 2**31:
                raise ValueError(f"{name} = {value} must be 0 to {2**31 - 1}")
        self.tables = PageTables.allocate(
            num_rows=num_rows,
            num_groups=num_groups,
            max_suffix_tokens=max_suffix_tokens,
            max_prefix_tokens=max_prefix_tokens,
            pinned=pinned,
        )
        params = extension().PagePoolParams(
            suffix_pages=self.tables.suffix_pages_SM.data_ptr(),
            prefix_pages=self.tables.prefix_pages_GM.data_ptr(),
            suffix_length=self.tables.suffix_length_S.data_ptr(),
            group=self.tables.group_S.data_ptr(),
            prefix_length=self.tables.prefix_length_G.data_ptr(),
            num_pages=num_pages,
            num_host_pages=num_host_pages,
            num_sequences=num_sequences,
            num_rows=num_rows,
            num_groups=num_groups,
            suffix_table_pages=max_suffix_tokens // PAGE_TOKENS,
            prefix_table_pages=max_prefix_tokens // PAGE_TOKENS,
        )
        self._pool: Any = extension().PagePool(params)

    @property
    def num_free(self) -> int:
        """Free pages on the device."""
        return int(self._pool.num_free)

    @property
    def num_free_host(self) -> int:
        """Free pages on the host."""
        return int(self._pool.num_free_host)

    def add_group(self, num_tokens: int) -> int:
        """A prompt with pages for `num_tokens`; it stays until it is released and has no members."""
        return int(self._run("add_group", num_tokens))

    def release_group(self, group: int) -> None:
        """No longer keep the prefix for new members; its pages are free when the last member is."""
        self._run("release_group", group)

    def drop_prefixes(self) -> int:
        """Release every group: its keys are those of other parameters. Returns how many there were."""
        return int(self._run("drop_prefixes"))

    def add_sequences(self, count: int, group: int = NO_GROUP) -> list[int]:
        """`count` empty sequences that continue the group's prefix."""
        return list(self._run("add_sequences", group, count))

    def fork(self, sequence: int) -> int:
        """A sequence with the same tokens. Pages are shared; reserve() gives who writes first a copy of its own."""
        return int(self._run("fork", sequence))

    def free(self, sequences: Sequence[int]) -> None:
        """Free sequences, on the device or on the host, in a row or not."""
        self._run("free_sequences", list(sequences))

    def reserve(self, sequences: Sequence[int], num_tokens: int | Sequence[int] = 1) -> PageMoves:
        """Pages for that many more tokens of each sequence, all or none; returns what kv_copy must copy for forks."""
        return _moves(self._run("reserve", list(sequences), _each(sequences, num_tokens)))

    def advance(self, sequences: Sequence[int], num_tokens: int | Sequence[int] = 1) -> None:
        """Each sequence is that many tokens longer: they have been, or are about to be, written to reserved pages."""
        self._run("advance", list(sequences), _each(sequences, num_tokens))

    def truncate(self, sequence: int, num_tokens: int) -> None:
        """Back to `num_tokens` own tokens (rejected drafts); the pages stay reserved."""
        self._run("truncate", sequence, num_tokens)

    def next_slots(self, sequences: Sequence[int], num_tokens: int | Sequence[int] = 1) -> Tensor:
        """int32: kv_append's slots of the next tokens of each sequence, one after the other. They must be reserved."""
        counts = _each(sequences, num_tokens)
        if any(count < 0 for count in counts):
            raise ValueError(f"num_tokens = {min(counts)} must not be negative")
        slots = torch.empty(self._checked_room(sequences, counts), dtype=torch.int32)
        self._run("next_slots", list(sequences), counts, slots.data_ptr())
        return slots

    def append(self, sequences: Sequence[int], num_tokens: int | Sequence[int] = 1) -> tuple[Tensor, PageMoves]:
        """reserve, next_slots and advance in one: (slots for kv_append, what kv_copy must do before it)."""
        moves = self.reserve(sequences, num_tokens)
        slots = self.next_slots(sequences, num_tokens)
        self.advance(sequences, num_tokens)
        return slots, moves

    def prefix_slots(self, group: int, begin: int, num_tokens: int) -> Tensor:
        """int32: kv_append's slots of the prompt's tokens `begin` and on."""
        if not 0 <= num_tokens <= self.tables.prefix_pages_GM.shape[1] * PAGE_TOKENS:
            raise ValueError(f"num_tokens = {num_tokens} must be 0 to what a row of the prefix table has room for")
        slots = torch.empty(num_tokens, dtype=torch.int32)
        self._run("prefix_slots", group, begin, num_tokens, slots.data_ptr())
        return slots

    def bind(self, sequence: int, row: int) -> None:
        """Put a sequence in a row of the batch; from then on the row of the tables is its."""
        self._run("bind", sequence, row)

    def unbind(self, sequence: int) -> None:
        """Take it out of its row, which becomes empty: no tokens, no group."""
        self._run("unbind", sequence)

    def swap_out(self, sequences: Sequence[int]) -> PageMoves:
        """Own pages to the host, out of their rows: from device pages to host pages, for kv_swap."""
        return _moves(self._run("swap_out", list(sequences)))

    def swap_in(self, sequences: Sequence[int]) -> PageMoves:
        """Back, in no row: from host pages to device pages, for kv_swap."""
        return _moves(self._run("swap_in", list(sequences)))

    def swap_out_group(self, group: int) -> PageMoves:
        """The prefix to the host, when all its members are there."""
        return _moves(self._run("swap_out_group", group))

    def swap_in_group(self, group: int) -> PageMoves:
        """The prefix back; before its members can be bound."""
        return _moves(self._run("swap_in_group", group))

    def segment(self, sequence: int) -> Segment:
        """A sequence's own pages and length."""
        return Segment(*self._run("own_segment", sequence))

    def prefix(self, group: int) -> Segment:
        """A group's pages and length."""
        return Segment(*self._run("prefix_segment", group))

    def group_of(self, sequence: int) -> int:
        """The sequence's group, NO_GROUP for none."""
        return int(self._run("group_of", sequence))

    def has_sequence(self, sequence: int) -> bool:
        """Whether the handle is of a living sequence."""
        return bool(self._pool.has_sequence(sequence))

    def has_group(self, group: int) -> bool:
        """Whether the handle is of a living group."""
        return bool(self._pool.has_group(group))

    def references(self, page: int) -> int:
        """How many segments have this device page."""
        return int(self._run("references", page))

    def upload(self, tables: PageTables) -> None:
        """Bring `tables`, on any device, up to date: lengths whole, of the page tables the rows that changed.

        One set of tables only: what was uploaded once is not uploaded again. ValueError for other shapes or devices.
        """
        for field in fields(PageTables):
            ours, theirs = getattr(self.tables, field.name), getattr(tables, field.name)
            check_tensor(field.name, theirs, torch.int32, tuple(ours.shape), tables.suffix_pages_SM.device)
        for name, rows in (
            ("suffix_pages_SM", self._pool.take_dirty_suffix_rows()),
            ("prefix_pages_GM", self._pool.take_dirty_prefix_rows()),
        ):
            if rows:
                ours, theirs, changed = getattr(self.tables, name), getattr(tables, name), torch.tensor(rows)
                theirs.index_copy_(0, changed.to(theirs.device), ours[changed].to(theirs.device))
        for name in ("suffix_length_S", "group_S", "prefix_length_G"):
            getattr(tables, name).copy_(getattr(self.tables, name))

    def check(self) -> None:
        """Raises RuntimeError where references, free pages, segments and tables disagree. Looks at everything."""
        self._pool.check()

    def _checked_room(self, sequences: Sequence[int], counts: list[int]) -> int:
        """Total of `counts`, none of which is beyond what a row holds."""
        most = self.tables.suffix_pages_SM.shape[1] * PAGE_TOKENS
        if counts and max(counts) > most:
            raise ValueError(f"num_tokens = {max(counts)} is beyond the {most} that a row has room for")
        if len(counts) != len(sequences):
            raise ValueError(f"{len(counts)} token counts for {len(sequences)} sequences; give one for each")
        return sum(counts)

    def _run(self, op: str, *arguments: Any) -> Any:
        try:
            return getattr(self._pool, op)(*arguments)
        except extension().PoolExhausted as refusal:
            raise PoolExhausted(str(refusal)) from None


def _each(sequences: Sequence[int], num_tokens: int | Sequence[int]) -> list[int]:
    return [num_tokens] * len(sequences) if isinstance(num_tokens, int) else list(num_tokens)


def _moves(lists: tuple[list[int], list[int]]) -> PageMoves:
    source, destination = (torch.tensor(pages, dtype=torch.int32) for pages in lists)
    return PageMoves(source, destination)
