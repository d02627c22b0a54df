"""What the page pool refuses, what it says then, and how much it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from pools import PAGE, PREFIX_PAGES, ROW_PAGES, small_pool

from r1fast.ops.page_pool import PagePool, PageTables, PoolExhausted


def test_what_cannot_be_is_refused_with_the_numbers() -> None:
    pool = small_pool()
    group = pool.add_group(70)
    first, second = pool.add_sequences(2, group)
    room = ROW_PAGES * PAGE
    pool.reserve([first], 65)
    pool.advance([first], 65)

    def refused(message: str, call: Callable[..., Any], *arguments: Any, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=message):
            call(*arguments)
        pool.check()

    refused(rf"num_tokens = {room - 64} .* of 65 tokens must be 0 to {room - 65}", pool.reserve, [first], room - 64)
    refused(r"num_tokens = -1 .* must be 0 to", pool.reserve, [first], -1)
    refused(r"num_tokens = 4611686018427387904 ", pool.reserve, [first], 2**62)
    refused(r"1 token counts for 2 sequences", pool.reserve, [first, second], [1])
    refused(rf"sequence {first} is listed twice", pool.reserve, [first, first], 1)
    refused(rf"sequence {second} has no page of its own for token 0 and on; reserve", pool.advance, [second], 1)
    refused(r"next_slots: .* has no page of its own", pool.next_slots, [second], 1)
    refused(rf"beyond the {room}", pool.next_slots, [second], room + 1)
    refused(r"sequence 12345 was never made", pool.fork, 12345)
    refused(r"sequence -7 was never made", pool.free, [-7])
    refused(r"group 77 was never made", pool.add_sequences, 1, 77)
    refused(rf"add_group: num_tokens = 257 must be 0 to {PREFIX_PAGES * PAGE}", pool.add_group, 257)
    refused(r"tokens from 60 on are not within the 70", pool.prefix_slots, group, 60, 11)
    refused(r"truncate: num_tokens = 66 must be 0 to 65", pool.truncate, first, 66)
    refused(r"row = 3 must be 0 to 2", pool.bind, first, 3)
    refused(r"is in no row", pool.unbind, first)
    refused(r"device page 16 is not one of the 16", pool.references, 16)
    pool.bind(first, 1)
    refused(rf"sequence {first} is in row 1; unbind", pool.bind, first, 2)
    refused(rf"row 1 has sequence {first}", pool.bind, second, 1)
    refused(r"7 sequences are wanted, there is room for 4 more, 6 in all", pool.add_sequences, 7, kind=PoolExhausted)
    pool.swap_out([first])
    refused(rf"sequence {first} is swapped out; swap it in first", pool.reserve, [first], 1)
    refused(r"is swapped out already", pool.swap_out, [first])
    refused(r"is on the device already", pool.swap_in, [second])
    refused(r"1 of 2 members of group \d+ are on the device", pool.swap_out_group, group)
    pool.release_group(group)
    refused(r"was released before", pool.release_group, group)
    refused(r"was released, its prefix may be out of date", pool.add_sequences, 1, group)
    assert pool.has_group(group)
    pool.free([first, second])
    assert not pool.has_group(group)
    refused(rf"free_sequences: sequence {first} was freed before", pool.free, [first])
    refused(rf"group {group} was freed before", pool.prefix, group)
    assert (pool.num_free, pool.num_free_host) == (16, 8)


def test_exhaustion_says_what_is_free_and_leaves_the_other_sequences_as_they_were() -> None:
    pool = small_pool()
    small, large = pool.add_sequences(2)
    pool.append([small], 3 * PAGE)
    pool.append([large], 6 * PAGE)
    third, fourth = pool.add_sequences(2)
    with pytest.raises(PoolExhausted, match=r"reserve: 8 device pages are wanted, 7 of 16 are free; free or swap out"):
        pool.reserve([third, fourth], 4 * PAGE)
    assert pool.segment(third).pages == []
    assert len(pool.swap_out([small])) == 3
    pool.reserve([third, fourth], 4 * PAGE)
    with pytest.raises(PoolExhausted, match=r"swap_out: 6 host pages are wanted, 5 of 8 are free"):
        pool.swap_out([large])
    pool.check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_pages": 0}, r"num_pages = 0 must be 1 to"),
        ({"num_pages": 2**26}, r"num_pages = 67108864 must be 1 to 33554431"),
        ({"num_pages": -1}, r"num_pages = -1"),
        ({"num_sequences": 0}, r"num_sequences = 0 and num_rows = 3 must be positive"),
        ({"num_rows": 0}, r"num_rows = 0 must be positive"),
        ({"max_suffix_tokens": 65}, r"max_suffix_tokens = 65 must be a multiple of 64"),
        ({"max_suffix_tokens": 0}, r"suffix_table_pages = 0 must be positive"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_pool(**change)


def test_tables_of_other_shapes_are_not_uploaded_to() -> None:
    pool = small_pool()
    other = PageTables.allocate(num_rows=4, num_groups=3, max_suffix_tokens=384, max_prefix_tokens=256)
    with pytest.raises(ValueError, match=r"suffix_pages_SM must be int32 \[3, 6\] on cpu, it is int32 \[4, 6\]"):
        pool.upload(other)
    mixed = replace(pool.tables, group_S=pool.tables.group_S.to("meta"))
    with pytest.raises(ValueError, match=r"group_S must be int32 \[3\] on cpu, it is int32 \[3\] on meta"):
        pool.upload(mixed)


def test_4096_sequences_of_128k_tokens() -> None:
    """A step of the whole batch is one call; a sequence may have 2048 pages."""
    most = 128 << 10
    pool = PagePool(
        num_pages=16 * 4096,
        num_sequences=4096,
        num_rows=4096,
        num_groups=256,
        max_suffix_tokens=most,
        max_prefix_tokens=most,
    )
    sequences = [s for _ in range(256) for s in pool.add_sequences(16, pool.add_group(500))]
    for row, sequence in enumerate(sequences):
        pool.bind(sequence, row)
    for _ in range(3):
        slots, moves = pool.append(sequences, 63)
        assert len(slots) == len(slots.unique()) == 63 * 4096
        assert not len(moves)
    assert pool.num_free == 16 * 4096 - 256 * 8 - 4096 * 3
    pool.free(sequences[1:])
    pool.append(sequences[:1], most - 189)
    with pytest.raises(ValueError, match=r"of 131072 tokens must be 0 to 0"):
        pool.reserve(sequences[:1], 1)
    assert len(pool.segment(sequences[0]).pages) == 2048
    pool.check()
