"""sequence_step: the CPU's step and the emulated kernel's are the same, and that of a plain Python model."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from backends import EMULATED, using
from hypothesis import given, settings
from slot_rows import EOS, OUTPUTS, Model, admit, allocate, batches, bits, draw, table_of

from r1fast.ops.page_pool import PagePool, PageTables
from r1fast.ops.sequence_step import (
    ENDED_BY_LENGTH,
    ENDED_BY_TOKEN,
    FAULT,
    LIVE,
    NO_PAGE,
    RESTING,
    Slots,
    sequence_step,
)

BOTH = pytest.mark.parametrize("backend", ["plain", EMULATED])


@settings(max_examples=20)
@given(batches())
def test_many_steps_of_a_plain_model(batch: tuple[list[Model | None], list[list[int]], int]) -> None:
    rows, steps, pages = batch
    both = [allocate(len(rows), max_tokens=70, pages=pages) for _ in range(2)]
    for slots in both:
        for number, model in enumerate(rows):
            if model is None:
                continue
            admit(slots, number, prompt=model.prompt, most=model.most, least=model.least, group=model.group)
            slots.page_table[number] = torch.tensor(model.pages, dtype=torch.int32)
    before = bits(both[0])
    for tokens in steps:
        failed = tuple(row for row, token in enumerate(tokens) if token < 0)
        for slots, backend in zip(both, ("plain", EMULATED), strict=True):
            with using(backend):
                draw(slots, [abs(token) for token in tokens], failed=failed)
        assert bits(both[0]) == bits(both[1])
        now = [model.step(abs(token), token < 0) for model, token in zip(rows, tokens, strict=True) if model]
        ended = now.count(ENDED_BY_TOKEN) + now.count(ENDED_BY_LENGTH)
        assert both[0].counts.tolist() == [now.count(LIVE), ended, now.count(NO_PAGE), now.count(FAULT)]
    after = bits(both[0])
    for number, model in enumerate(rows):
        if model is not None:
            model.expect(both[0], number)
        else:
            for name in both[0].row_fields:
                width = len(before[name]) // len(rows)
                part = slice(number * width, (number + 1) * width)
                assert before[name][part] == after[name][part], name


@BOTH
def test_a_fresh_sample(backend: str) -> None:
    slots = allocate(2)
    admit(slots, 1, prompt=5, group=3)
    with using(backend):
        draw(slots, [11, 12])
    assert [getattr(slots, name)[1].item() for name in ("token", "position", "suffix_length", "group")] == [12, 5, 1, 3]
    assert slots.kv_slot.tolist() == [-1, slots.page_table[1, 0] * 64]
    assert slots.counts.tolist() == [1, 0, 0, 0]


@BOTH
@pytest.mark.parametrize(
    ("least", "most", "token", "state"),
    [
        (0, 8, 9, [ENDED_BY_TOKEN]),
        (1, 8, 9, [ENDED_BY_TOKEN]),
        (2, 8, 7, [LIVE, ENDED_BY_TOKEN]),
        (3, 8, 7, [LIVE, LIVE, ENDED_BY_TOKEN]),
        (2, 2, 7, [LIVE, ENDED_BY_TOKEN]),  # both at once: it is the token
        (3, 2, 7, [LIVE, ENDED_BY_LENGTH]),
        (0, 2, 8, [LIVE, ENDED_BY_LENGTH]),
        (0, 1, 8, [ENDED_BY_LENGTH]),
    ],
)
def test_what_ends_a_row(backend: str, least: int, most: int, token: int, state: list[int]) -> None:
    slots = allocate(1)
    admit(slots, 0, least=least, most=most)
    for number, expected in enumerate(state):
        with using(backend):
            draw(slots, [token])
        assert slots.state.item() == expected
        assert slots.counts.tolist() == [int(expected == LIVE), int(expected != LIVE), 0, 0]
        assert slots.tokens_SN[0, : number + 1].tolist() == [token] * (number + 1)
    slots.check()


@BOTH
def test_no_eos(backend: str) -> None:
    slots = allocate(1, eos=(), max_tokens=2)
    admit(slots, 0)
    with using(backend):
        draw(slots, [7])
    assert slots.state.item() == LIVE


@BOTH
def test_pages_follow_each_other(backend: str) -> None:
    slots = allocate(3, pages=2)
    first, second = slots.page_table.T.tolist()
    for row, length in enumerate((62, 63, 64)):
        admit(slots, row)
        slots.suffix_length[row] = length
    with using(backend):
        draw(slots, [20, 21, 22])
    assert slots.suffix_length.tolist() == [63, 64, 65]
    assert slots.kv_slot.tolist() == [first[0] * 64 + 62, first[1] * 64 + 63, second[2] * 64]


@BOTH
def test_a_row_without_a_page(backend: str) -> None:
    slots = allocate(4, pages=2)
    for row, length in enumerate((63, 64, 127, 128)):
        admit(slots, row)
        slots.suffix_length[row] = length
    slots.page_table[1, 1] = -1
    slots.page_table[2, 1] = 1 << 25  # its slots are no int32
    with using(backend):
        draw(slots, [20, 21, 22, 23])
    assert slots.state.tolist() == [LIVE, NO_PAGE, NO_PAGE, NO_PAGE]
    assert slots.counts.tolist() == [1, 0, 3, 0]
    assert slots.kv_slot[1:].tolist() == slots.group[1:].tolist() == [-1] * 3
    assert slots.suffix_length.tolist() == [64, 0, 0, 0]
    assert slots.num_generated.tolist() == [1] * 4  # what was drawn is kept
    with pytest.raises(RuntimeError, match=r"row 1: no page for its next token .*row 3: .*a row of page_table has 2"):
        slots.check()


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_generated", -1),
        ("num_generated", 8),
        ("num_generated", -(2**31)),
        ("num_generated", 2**31 - 1),
        ("max_tokens", 0),
        ("max_tokens", 9),
        ("suffix_length", -1),
        ("suffix_length", 129),
        ("suffix_length", 2**31 - 1),
        ("position", -2),
        ("position", 2**31 - 1),
    ],
)
def test_corrupt_numbers_are_a_fault(backend: str, name: str, value: int) -> None:
    slots = allocate(3)
    for row in range(3):
        admit(slots, row)
    getattr(slots, name)[1] = value
    before = bits(slots.rows(1, 2))
    with using(backend):
        draw(slots, [20, 21, 22])
    after = bits(slots.rows(1, 2))
    changed = {key for key in before if before[key] != after[key]} - {"counts", "group", "suffix_length"}
    assert changed == {"state"}
    assert slots.state.tolist() == [LIVE, FAULT, LIVE]
    assert slots.counts.tolist() == [2, 0, 0, 1]
    with pytest.raises(RuntimeError, match=r"cannot go on: row 1: its draw failed, or its own numbers are"):
        slots.check()


@BOTH
def test_a_failed_draw_and_a_token_that_is_none(backend: str) -> None:
    slots = allocate(3)
    for row in range(3):
        admit(slots, row)
    with using(backend):
        draw(slots, [20, 7, -1], failed=(1,))
    assert slots.state.tolist() == [LIVE, FAULT, FAULT]
    assert slots.num_generated.tolist() == [1, 0, 0]
    assert slots.counts.tolist() == [1, 0, 0, 2]


def test_a_state_that_is_none_rests_and_is_told() -> None:
    slots = allocate(2)
    slots.state[1] = 77
    draw(slots, [20, 21])
    assert slots.num_generated.tolist() == [0, 0]
    with pytest.raises(RuntimeError, match=r"row 1: state = 77 is none"):
        slots.check()


@BOTH
def test_a_large_batch_counts_every_row(backend: str) -> None:
    slots = allocate(4096, pages=1)
    slots.state.fill_(LIVE)
    slots.state[::5] = RESTING
    slots.page_table[1::5] = -1
    tokens = [7 if row % 5 == 2 else 11 for row in range(4096)]
    with using(backend):
        draw(slots, tokens, failed=tuple(range(3, 4096, 5)))
    assert slots.counts.tolist() == [len(range(first, 4096, 5)) for first in (4, 2, 1, 3)]


@BOTH
def test_a_view_of_rows(backend: str) -> None:
    slots, alone = allocate(5), allocate(2)
    for row in range(5):
        admit(slots, row)
    for row in range(2):
        admit(alone, row)
    alone.page_table.copy_(slots.page_table[2:4])
    before, view = bits(slots), slots.rows(2, 4)
    with using(backend):
        draw(view, [20, 9])
        draw(alone, [20, 9])
    assert bits(view) == bits(alone)
    assert view.counts is slots.counts
    after = bits(slots)
    for name in slots.row_fields:
        width = len(after[name]) // 5
        for outside in (slice(0, 2 * width), slice(4 * width, None)):
            assert before[name][outside] == after[name][outside], name


def test_copied_rows_go_on_as_they_were() -> None:
    slots, alone = allocate(5, pages=2), allocate(1, pages=2)
    for row in range(5):
        admit(slots, row, prompt=row + 1, group=row)
        slots.suffix_length[row], slots.key[row, 1], slots.sample_index[row] = 60 + row, row, row
    draw(slots, [20, 21, 22, 23, 24])
    before = bits(slots)
    slots.copy([4, 3], [0, 1])
    after = bits(slots)
    for name in slots.row_fields:
        width = len(after[name]) // 5
        rows = [before[name][row * width : (row + 1) * width] for row in range(5)]
        expected = [rows[4], rows[3], rows[2], rows[3], rows[4]]
        assert after[name] == [number for row in expected for number in row], name
    assert {name for name in before if before[name] == after[name]} >= {"page_table", "eos", "counts"}

    slots.page_table[0] = slots.page_table[4]  # the pool's part
    for row in (0, 4):
        draw(slots.rows(row, row + 1), [30])
    assert bits(slots.rows(0, 1)) == bits(slots.rows(4, 5))
    slots.copy([], [])
    assert slots.row_fields == alone.row_fields


def test_row_fields_are_all_but_the_shared_ones() -> None:
    assert set(allocate(1).row_fields) == {
        *("token", "position", "suffix_length", "kv_slot", "group", "num_generated", "max_tokens", "min_tokens"),
        *("state", "sample_index", "key", *OUTPUTS),
    }


def test_slots_are_those_that_the_pool_gives() -> None:
    pool = PagePool(num_pages=9, num_sequences=1, num_rows=1, num_groups=1, max_suffix_tokens=128, max_prefix_tokens=64)
    tables = PageTables.allocate(num_rows=1, num_groups=1, max_suffix_tokens=128, max_prefix_tokens=64)
    slots = Slots.allocate(rows=1, max_tokens=100, eos=(), page_table=tables.suffix_pages_SM)
    (sequence,) = pool.add_sequences(1, pool.add_group(5))
    pool.bind(sequence, 0)
    admit(slots, 0)
    for step in range(100 - 1):
        expected, _ = pool.append([sequence])
        pool.upload(tables)
        draw(slots, [step])
        assert slots.kv_slot.tolist() == expected.tolist()
        assert slots.suffix_length.tolist() == tables.suffix_length_S.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, r"rows = 0 must be 1 to"),
        ({"max_tokens": 0}, r"max_tokens = 0 must be 1 to"),
        ({"eos": (3, -1)}, r"eos has -1; a token is 0 to"),
        (
            {"page_table": torch.zeros(3, dtype=torch.int32)},
            r"page_table must be int32 \[2, pages\], it is",
        ),
        ({"page_table": table_of(3, 4)}, r"page_table must be int32 \[2, 4\] on cpu, it is int32 \[3, 4\]"),
        ({"page_table": table_of(2, 4).long()}, r"page_table must be int32 \[2, 4\] on cpu, it is int64"),
        ({"page_table": table_of(4, 2).T}, r"page_table must be contiguous"),
    ],
)
def test_what_slots_are_made_of_is_checked(options: dict[str, object], message: str) -> None:
    sizes = {"rows": 2, "max_tokens": 4, "eos": EOS, "page_table": table_of(2, 4)} | options
    with pytest.raises(ValueError, match=message):
        Slots.allocate(**sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sources", "targets", "message"),
    [
        ([1], [0, 2], r"1 sources for 2 targets; give one for each"),
        ([3], [0], r"sources has row 3; the rows are 0 to 2"),
        ([0], [-1], r"targets has row -1"),
        ([0, 1], [2, 2], r"targets \[2, 2\] has a row twice"),
        ([0, 1], [1, 2], r"rows \[1\] are sources and targets; copy in two calls"),
    ],
)
def test_what_cannot_be_copied(sources: list[int], targets: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        allocate(3).copy(sources, targets)


@pytest.mark.parametrize(("begin", "end"), [(-1, 2), (2, 2), (2, 1), (0, 4)])
def test_rows_that_are_none(begin: int, end: int) -> None:
    with pytest.raises(ValueError, match=rf"rows {begin} to {end} must be a range of the 3, not empty"):
        allocate(3).rows(begin, end)


@pytest.mark.parametrize(
    ("number", "tensor", "message"),
    [
        (0, torch.zeros(2).long(), r"drawn_token_S must be int32 \[2\] on cpu, it is int64"),
        (1, torch.zeros(3), r"logp_S must be float32 \[2\] on cpu, it is float32 \[3\]"),
        (2, torch.zeros(2).double(), r"log_kept_mass_S must be float32"),
        (3, torch.zeros(4)[::2], r"entropy_S must be contiguous"),
        (4, torch.zeros(2).bool(), r"status_S must be int32 \[2\] on cpu, it is bool"),
    ],
)
def test_tensors_are_checked(number: int, tensor: torch.Tensor, message: str) -> None:
    slots = allocate(2)
    words, numbers = torch.zeros(2, dtype=torch.int32), torch.zeros(2)
    drawn = [words, numbers, numbers, numbers, words]
    drawn[number] = tensor
    with pytest.raises(ValueError, match=message):
        sequence_step(slots, *drawn)


@pytest.mark.gpu
def test_a_captured_step_on_a_gpu_is_the_cpu_s_step() -> None:
    slots = allocate(40, max_tokens=5)
    on_gpu = Slots(**{field.name: getattr(slots, field.name).cuda() for field in fields(Slots)})
    for row in range(0, 40, 3):
        for each in (slots, on_gpu):
            admit(each, row, prompt=row, most=1 + row % 5, group=row % 4)
    words, numbers = torch.zeros(40, dtype=torch.int32), torch.rand(3, 40)
    token, status, numbers_there = words.cuda(), words.cuda(), numbers.cuda()
    before, graph = on_gpu.state.clone(), torch.cuda.CUDAGraph()
    on_gpu.state.zero_()
    sequence_step(on_gpu, token, *numbers_there, status)  # loads the kernel, and finds no row live
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        sequence_step(on_gpu, token, *numbers_there, status)
    on_gpu.state.copy_(before)
    for step in range(6):
        drawn = torch.arange(step, 40 + step, dtype=torch.int32)
        token.copy_(drawn)
        sequence_step(slots, drawn, *numbers, words)
        graph.replay()
        moved = Slots(**{field.name: getattr(on_gpu, field.name).cpu() for field in fields(Slots)})
        assert bits(moved) == bits(slots)
