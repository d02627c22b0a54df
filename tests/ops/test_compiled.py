"""The ops under torch.compile: one graph, the same bits as without, and buffers written in place."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from batches import Batch, Shape
from slot_rows import admit, bits
from torch import Tensor

from r1fast.ops.compiled import compiled_op
from r1fast.ops.decode_plan import DecodePlan, decode_plan
from r1fast.ops.kv_append import HeadTreatment, kv_append
from r1fast.ops.paged_decode import attention_merge, paged_decode
from r1fast.ops.sample import Drawn, sample
from r1fast.ops.sequence_step import Slots, sequence_step

HEADS, KV_HEADS, HEAD_DIM, ROWS = 4, 2, 64, 3


@dataclass
class Step:
    """What a decode step of three rows, one of which rests, reads and writes."""

    batch: Batch
    plan: DecodePlan
    slots: Slots
    drawn: Drawn
    treatment: HeadTreatment
    prefix_length: Tensor
    weight: Tensor

    @classmethod
    def make(cls) -> Step:
        generator = torch.Generator().manual_seed(3)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).bfloat16()

        batch = Batch(
            Shape(num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM), [(0, 64), (-1, 0), (0, 70)], [100]
        )
        plan = batch.plan()
        slots = Slots.allocate(rows=ROWS, max_tokens=4, eos=(7,), page_table=batch.suffix_pages)
        for row in (0, 2):
            admit(slots, row, prompt=100)
            slots.suffix_length[row] = batch.rows[row][1]
            slots.kv_slot[row] = batch.suffix_pages[row, (batch.rows[row][1] - 1) // 64] * 64 + row
        treatment = HeadTreatment(
            key_bias_KD=random(KV_HEADS, HEAD_DIM),
            cosine_ND=random(200, HEAD_DIM // 2).float(),
            sine_ND=random(200, HEAD_DIM // 2).float(),
        )
        weight = random(HEADS * HEAD_DIM, (HEADS + 2 * KV_HEADS) * HEAD_DIM)
        return cls(batch, plan, slots, Drawn.allocate(ROWS), treatment, torch.tensor([100], dtype=torch.int32), weight)

    def bits(self) -> dict[str, list[int]]:
        written = {"keys": self.batch.key_pages, "values": self.batch.value_pages}
        written |= {f.name: x for f in fields(DecodePlan) if isinstance(x := getattr(self.plan, f.name), Tensor)}
        return bits(self.slots) | {
            name: (x.view(torch.int16) if x.dtype == torch.bfloat16 else x.view(torch.int32)).flatten().tolist()
            for name, x in written.items()
        }


def layer(step: Step, hidden: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """A whole decode step of a model with one layer. In place where the ops are: queries too."""
    slots, plan = step.slots, step.plan
    decode_plan(plan, slots.suffix_length, slots.group, step.prefix_length)
    query, key, value = (hidden @ step.weight).view(ROWS, -1, HEAD_DIM).split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    kv_append(
        key,
        value,
        keys,
        values,
        slots.kv_slot,
        query_THD=query,
        query_out_THD=query,
        position_T=slots.position,
        treatment=step.treatment,
    )
    paged_decode(plan, query, keys, values, step.batch.suffix_pages, step.batch.prefix_pages, scale=0.1)
    output, lse = torch.empty_like(query), torch.empty(ROWS, HEADS)
    attention_merge(plan, output, lse)
    logits = output.flatten(1).float()
    drawn, ones, none = step.drawn, torch.ones(ROWS), torch.zeros(ROWS)
    sample(
        logits,
        drawn,
        temperature_R=ones,
        top_k_R=none.int(),
        top_p_R=ones * 0.9,
        min_p_R=none,
        key_R2=slots.key,
        sample_index_R=slots.sample_index,
        position_R=slots.num_generated,
    )
    sequence_step(slots, drawn.token_R, drawn.logp_R, drawn.log_kept_mass_R, drawn.entropy_R, drawn.status_R)
    return output * 2, lse + 1


def run(backend: Any, num_steps: int = 3) -> tuple[list[Tensor], dict[str, list[int]]]:
    """Outputs of a few steps, and what the buffers hold after them."""
    step = Step.make()
    addresses = [x.data_ptr() for x in (step.batch.key_pages, step.plan.items, step.slots.token)]
    call = layer if backend is None else torch.compile(layer, backend=backend, fullgraph=True)
    outputs = []
    for number in range(num_steps):
        generator = torch.Generator().manual_seed(number)
        hidden = torch.randn(ROWS, HEADS * HEAD_DIM, generator=generator).bfloat16()
        outputs += call(step, hidden, step.batch.key_pages, step.batch.value_pages)
    assert addresses == [x.data_ptr() for x in (step.batch.key_pages, step.plan.items, step.slots.token)]
    return outputs, step.bits()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_decode_step_is_one_graph_with_the_same_bits(backend: str) -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    (own, own_bits), (expected, expected_bits) = run(counter), run(None)
    assert counter.frame_count == 1  # for all steps
    assert own_bits == expected_bits
    assert all(torch.equal(x, y) for x, y in zip(own, expected, strict=True))
    assert expected[0].isfinite().all()
    assert expected_bits["num_generated"] == [1, 0, 3]  # the first finds no page, the second rests


@pytest.mark.slow
def test_the_default_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor, which needs a C++ compiler. It may order the sums of its own products otherwise, but not the ops'."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    (own, own_bits), (expected, expected_bits) = run("inductor"), run(None)
    torch.testing.assert_close(own, expected)
    for name in ("tokens_SN", "status", "kv_slot", "position"):
        assert own_bits[name] == expected_bits[name], name


def test_pages_that_are_views_of_one_cache() -> None:
    """Keys and values of every layer in one tensor, of which the graph gets views."""
    torch._dynamo.reset()
    key, value = torch.randn(2, 3, KV_HEADS, HEAD_DIM).bfloat16()
    slot = torch.tensor([5, -1, 64], dtype=torch.int32)
    caches = torch.zeros(2, 2, 2, 3, KV_HEADS, 64, HEAD_DIM).bfloat16()  # 2: eager or not; keys, values; layers

    def write(cache: Tensor) -> Tensor:
        for number in range(2):
            kv_append(key + number, value, cache[0, number], cache[1, number], slot)
        return cache.sum()

    write(caches[0])
    torch.compile(write, backend="aot_eager", fullgraph=True)(caches[1])
    assert caches[0].any()
    assert torch.equal(*caches)


def test_errors_come_through() -> None:
    torch._dynamo.reset()
    pages = torch.zeros(3, KV_HEADS, 64, HEAD_DIM).bfloat16()
    tokens = torch.zeros(1, KV_HEADS, HEAD_DIM).bfloat16()
    call = torch.compile(kv_append, backend="aot_eager", fullgraph=True)
    with pytest.raises(ValueError, match=r"slot_T must be int32 \[1\] on cpu, it is int64"):
        call(tokens, tokens, pages, pages.clone(), torch.zeros(1).long())


def test_what_is_written_must_be_an_argument() -> None:
    with pytest.raises(AssertionError, match=r"no arguments: \{'nonsense'\}"):

        @compiled_op(writes=("nonsense",))
        def wrong(x: Tensor) -> None: ...


@pytest.mark.parametrize(
    "op", ["kv_append", "decode_plan", "paged_decode", "attention_merge", "sample", "sequence_step"]
)
def test_every_buffer_that_an_op_changes_is_named(op: str) -> None:
    """PyTorch's own check: an op writes to what its schema says, and to nothing else."""
    step = Step.make()
    slots, batch = step.slots, step.batch
    key, query = torch.ones(ROWS, KV_HEADS, HEAD_DIM).bfloat16(), torch.ones(ROWS, HEADS, HEAD_DIM).bfloat16()
    words, numbers, pages = torch.zeros(ROWS, dtype=torch.int32), torch.ones(ROWS), (batch.key_pages, batch.value_pages)
    if op in ("decode_plan", "paged_decode"):  # which changes them all: they hold what it would write
        written = [step.plan.partial_output, step.plan.partial_lse]
        if op == "decode_plan":
            written = [step.plan.items, step.plan.status, step.plan.members_S, step.plan.partial_begin]
        for buffer in written:
            buffer.fill_(-9)
    arguments: dict[str, tuple[Any, ...]] = {
        "kv_append": (key, key, *pages, slots.kv_slot, query, query.clone(), slots.position, step.treatment),
        "decode_plan": (step.plan, slots.suffix_length, slots.group, step.prefix_length),
        "paged_decode": (step.plan, batch.query, *pages, batch.suffix_pages, batch.prefix_pages, None),
        "attention_merge": (step.plan, query, torch.zeros(ROWS, HEADS)),
        "sample": (query[:, 0], step.drawn, numbers, words, numbers, numbers * 0, slots.key, words, words, None),
        "sequence_step": (slots, words + 9, numbers, numbers * 2, numbers * 3, words),
    }
    flat = []
    for value in arguments[op]:
        flat += [getattr(value, f.name) for f in fields(value)] if is_dataclass(value) else [value]
    registered = getattr(torch.ops.r1fast, op).default
    torch.library.opcheck(registered, tuple(flat), test_utils=("test_schema", "test_faketensor"))
