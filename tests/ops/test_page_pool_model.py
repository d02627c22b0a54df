"""The page pool against a dict model under any order of calls, exhaustion and swapping included."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pools import PAGE, PREFIX_PAGES, ROW_PAGES, ROWS, small_pool

from r1fast.ops.page_pool import NO_GROUP, PageMoves, PageTables, PoolExhausted

LENGTHS = st.one_of(st.sampled_from([0, 1, 63, 64, 65, 128, 129]), st.integers(0, 200))


@dataclass
class ModelSequence:
    group: int
    tokens: list[int] = field(default_factory=list)  # what was written, a number of its own for every write
    room: int = 0  # pages
    on_host: bool = False
    row: int | None = None


@dataclass
class ModelGroup:
    tokens: list[int]
    cached: bool = True
    on_host: bool = False


def pages_of(num_tokens: int) -> int:
    return -(-num_tokens // PAGE)


def draw_some(data: st.DataObject, handles: list[int], most: int) -> list[int]:
    return data.draw(st.lists(st.sampled_from(handles), unique=True, max_size=most)) if handles else []


class PoolMachine(RuleBasedStateMachine):
    """Dicts of what was written, and two memories that are changed only where the pool says."""

    def __init__(self) -> None:
        super().__init__()
        self.sequences: dict[int, ModelSequence] = {}
        self.groups: dict[int, ModelGroup] = {}
        self.gone: list[int] = []
        self.written = 0

    @initialize(num_pages=st.integers(4, 24), num_host_pages=st.integers(0, 12))
    def make(self, num_pages: int, num_host_pages: int) -> None:
        self.pool = small_pool(num_pages=num_pages, num_host_pages=num_host_pages)
        self.num_pages, self.num_host_pages = num_pages, num_host_pages
        self.device = [[-1] * PAGE for _ in range(num_pages)]
        self.host = [[-1] * PAGE for _ in range(num_host_pages)]
        self.uploaded = PageTables.allocate(
            num_rows=ROWS, num_groups=3, max_suffix_tokens=ROW_PAGES * PAGE, max_prefix_tokens=PREFIX_PAGES * PAGE
        )

    # Memory

    def move(self, moves: PageMoves, source: list[list[int]], destination: list[list[int]]) -> None:
        pairs = list(zip(moves.source.tolist(), moves.destination.tolist(), strict=True))
        assert len({target for _, target in pairs}) == len(pairs)
        copies = [list(source[page]) for page, _ in pairs]
        for (_, page), contents in zip(pairs, copies, strict=True):
            destination[page][:] = contents

    def write(self, slots: torch.Tensor) -> list[int]:
        """Fresh numbers at these slots, each in a page that one segment has."""
        numbers = list(range(self.written, self.written + len(slots)))
        self.written += len(slots)
        for slot, number in zip(slots.tolist(), numbers, strict=True):
            assert self.pool.references(slot // PAGE) == 1, "a write to a shared page"
            self.device[slot // PAGE][slot % PAGE] = number
        return numbers

    def state(self) -> list[Any]:
        """All that a refusal must leave alone."""
        tables = [tensor.tolist() for tensor in vars(self.pool.tables).values()]
        segments = [self.pool.segment(handle) for handle in self.sequences]
        prefixes = [self.pool.prefix(handle) for handle in self.groups]
        return [tables, segments, prefixes, self.pool.num_free, self.pool.num_free_host]

    def attempt(self, call: Callable[[], Any], fits: bool) -> Any:
        """The result, or None for a refusal that changed nothing; refused exactly when the model says so."""
        before = self.state()
        try:
            result = call()
        except PoolExhausted:
            assert not fits
            assert self.state() == before
            return None
        assert fits
        return result

    def pick(self, data: st.DataObject, *, on_host: bool | None = False, several: bool = True) -> list[int]:
        handles = [h for h, s in self.sequences.items() if on_host is None or s.on_host == on_host]
        return draw_some(data, handles, len(handles) if several else 1)

    # Rules

    @rule(num_tokens=st.integers(0, PREFIX_PAGES * PAGE))
    def add_group(self, num_tokens: int) -> None:
        fits = len(self.groups) < 3 and pages_of(num_tokens) <= self.pool.num_free
        handle = self.attempt(lambda: self.pool.add_group(num_tokens), fits)
        if handle is not None:
            half = num_tokens // 2
            tokens = self.write(self.pool.prefix_slots(handle, 0, half))
            self.groups[handle] = ModelGroup(
                tokens + self.write(self.pool.prefix_slots(handle, half, num_tokens - half))
            )

    @rule(data=st.data(), count=st.integers(0, 3))
    def add_sequences(self, data: st.DataObject, count: int) -> None:
        group = data.draw(st.sampled_from([NO_GROUP, *(h for h, g in self.groups.items() if g.cached)]))
        handles = self.attempt(lambda: self.pool.add_sequences(count, group), len(self.sequences) + count <= 6)
        for handle in handles or []:
            self.sequences[handle] = ModelSequence(group)

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        """Reserve for several, write to some of what was reserved."""
        handles = self.pick(data)
        counts = [min(data.draw(LENGTHS), self.left(handle)) for handle in handles]
        fits = self.wanted(handles, counts) <= self.pool.num_free
        moves = self.attempt(lambda: self.pool.reserve(handles, counts), fits)
        if moves is None:
            return
        self.move(moves, self.device, self.device)
        used = [data.draw(st.integers(0, count)) for count in counts]
        numbers = iter(self.write(self.pool.next_slots(handles, used)))
        self.pool.advance(handles, used)
        for handle, count, written in zip(handles, counts, used, strict=True):
            sequence = self.sequences[handle]
            sequence.room = max(sequence.room, pages_of(len(sequence.tokens) + count))
            sequence.tokens += [next(numbers) for _ in range(written)]

    def left(self, handle: int) -> int:
        return ROW_PAGES * PAGE - len(self.sequences[handle].tokens)

    def wanted(self, handles: list[int], counts: list[int]) -> int:
        """New pages, by the model: growth, and shared pages that are written to, but for the last one who has them."""
        shared = Counter(
            page for s in self.sequences if not self.sequences[s].on_host for page in self.pool.segment(s).pages
        )
        wanted = 0
        for handle, count in zip(handles, counts, strict=True):
            sequence, pages = self.sequences[handle], self.pool.segment(handle).pages
            end = pages_of(len(sequence.tokens) + count)
            wanted += max(0, end - sequence.room)
            for page in pages[len(sequence.tokens) // PAGE : end] if count else []:
                wanted += shared[page] > 1
                shared[page] -= 1
        return wanted

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        for handle in self.pick(data, several=False):
            child = self.attempt(partial(self.pool.fork, handle), len(self.sequences) < 6)
            if child is not None:
                parent = self.sequences[handle]
                self.sequences[child] = ModelSequence(parent.group, list(parent.tokens), pages_of(len(parent.tokens)))

    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        for handle in self.pick(data, several=False):
            tokens = self.sequences[handle].tokens
            del tokens[data.draw(st.integers(0, len(tokens))) :]
            self.pool.truncate(handle, len(tokens))

    @rule(data=st.data(), row=st.integers(0, ROWS - 1))
    def bind(self, data: st.DataObject, row: int) -> None:
        for handle in self.pick(data, several=False):
            sequence = self.sequences[handle]
            if sequence.row is not None:
                self.pool.unbind(handle)
                sequence.row = None
            away = sequence.group in self.groups and self.groups[sequence.group].on_host
            if away or any(other.row == row for other in self.sequences.values()):
                with pytest.raises(ValueError, match=r"swapped out|has sequence"):
                    self.pool.bind(handle, row)
            else:
                self.pool.bind(handle, row)
                sequence.row = row

    @rule(data=st.data())
    def swap_out(self, data: st.DataObject) -> None:
        handles = self.pick(data)
        wanted = sum(pages_of(len(self.sequences[h].tokens)) for h in handles)
        moves = self.attempt(lambda: self.pool.swap_out(handles), wanted <= self.pool.num_free_host)
        if moves is not None:
            self.move(moves, self.device, self.host)
            for handle in handles:
                sequence = self.sequences[handle]
                sequence.on_host, sequence.row, sequence.room = True, None, pages_of(len(sequence.tokens))

    @rule(data=st.data())
    def swap_in(self, data: st.DataObject) -> None:
        handles = self.pick(data, on_host=True)
        wanted = sum(self.sequences[h].room for h in handles)
        moves = self.attempt(lambda: self.pool.swap_in(handles), wanted <= self.pool.num_free)
        if moves is not None:
            self.move(moves, self.host, self.device)
            for handle in handles:
                self.sequences[handle].on_host = False

    @precondition(lambda self: self.groups)
    @rule(data=st.data())
    def swap_group(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(sorted(self.groups)))
        group = self.groups[handle]
        if not group.on_host and any(not s.on_host for s in self.sequences.values() if s.group == handle):
            with pytest.raises(ValueError, match=r"swap_out_group: \d+ of \d+ members of group"):
                self.pool.swap_out_group(handle)
            return
        wanted = pages_of(len(group.tokens))
        if group.on_host:
            moves = self.attempt(lambda: self.pool.swap_in_group(handle), wanted <= self.pool.num_free)
        else:
            moves = self.attempt(lambda: self.pool.swap_out_group(handle), wanted <= self.pool.num_free_host)
        if moves is not None:
            memories = (self.host, self.device) if group.on_host else (self.device, self.host)
            self.move(moves, *memories)
            group.on_host = not group.on_host

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        handles = self.pick(data, on_host=None)
        self.pool.free(handles)
        for handle in handles:
            del self.sequences[handle]
        self.gone += handles
        self.forget_groups()

    @rule(data=st.data())
    def release_group(self, data: st.DataObject) -> None:
        cached = [handle for handle, group in self.groups.items() if group.cached]
        for handle in draw_some(data, cached, 1):
            self.pool.release_group(handle)
            self.groups[handle].cached = False
        self.forget_groups()

    @rule()
    def drop_prefixes(self) -> None:
        assert self.pool.drop_prefixes() == sum(group.cached for group in self.groups.values())
        for group in self.groups.values():
            group.cached = False
        self.forget_groups()

    def forget_groups(self) -> None:
        needed = {sequence.group for sequence in self.sequences.values()}
        self.groups = {h: group for h, group in self.groups.items() if group.cached or h in needed}

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def use_after_free(self, data: st.DataObject) -> None:
        stale = data.draw(st.sampled_from(self.gone))
        for call in (self.pool.fork, self.pool.segment, lambda handle: self.pool.free([handle])):
            with pytest.raises(ValueError, match=rf"sequence {stale} was freed before"):
                call(stale)

    # Invariants

    @invariant()
    def everything_agrees(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check()
        used, used_host = Counter[int](), Counter[int]()
        for handle, sequence in self.sequences.items():
            segment = self.pool.segment(handle)
            assert (segment.num_tokens, segment.on_host) == (len(sequence.tokens), sequence.on_host)
            assert len(segment.pages) == sequence.room
            self.compare(segment.pages, sequence.tokens, sequence.on_host, used_host if sequence.on_host else used)
        for handle, group in self.groups.items():
            prefix = self.pool.prefix(handle)
            assert (prefix.num_tokens, prefix.on_host) == (len(group.tokens), group.on_host)
            self.compare(prefix.pages, group.tokens, group.on_host, used_host if group.on_host else used)
        assert self.pool.num_free + len(used) == self.num_pages
        assert self.pool.num_free_host + len(used_host) == self.num_host_pages
        assert all(self.pool.references(page) == used[page] for page in range(self.num_pages))
        assert all(count == 1 for count in used_host.values())
        self.tables_agree()

    def compare(self, pages: list[int], tokens: list[int], on_host: bool, used: Counter[int]) -> None:
        memory = self.host if on_host else self.device
        assert len(set(pages)) == len(pages), "a page twice in a table"
        used.update(pages)
        assert [number for page in pages for number in memory[page]][: len(tokens)] == tokens

    def tables_agree(self) -> None:
        tables, rows = self.pool.tables, {s.row: h for h, s in self.sequences.items() if s.row is not None}
        for row in range(ROWS):
            segment = self.pool.segment(rows[row]) if row in rows else None
            pages = segment.pages if segment else []
            assert tables.suffix_pages_SM[row].tolist() == pages + [-1] * (ROW_PAGES - len(pages))
            assert int(tables.suffix_length_S[row]) == (segment.num_tokens if segment else 0)
            group = int(tables.group_S[row])
            if segment is None or self.sequences[rows[row]].group == NO_GROUP:
                assert group == -1
                continue
            prefix = self.pool.prefix(self.sequences[rows[row]].group)
            assert tables.prefix_pages_GM[group].tolist() == prefix.pages + [-1] * (PREFIX_PAGES - len(prefix.pages))
            assert int(tables.prefix_length_G[group]) == prefix.num_tokens
        self.pool.upload(self.uploaded)
        for name, ours in vars(tables).items():
            assert torch.equal(getattr(self.uploaded, name), ours), name

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.free(list(self.sequences))
            self.pool.drop_prefixes()
            assert (self.pool.num_free, self.pool.num_free_host) == (self.num_pages, self.num_host_pages)
            self.pool.check()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=100, stateful_step_count=30)
