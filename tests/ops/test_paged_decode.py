"""paged_decode and attention_merge against fp64 attention: CPU code of each instruction set, CUDA kernels emulated."""

from __future__ import annotations

import pytest
import torch
from backends import BACKENDS, EMULATED, using
from batches import Batch, Shape, check
from emulated import emulated
from hypothesis import example, given, settings
from hypothesis import strategies as st

HEADS = {1: (2, 2), 2: (4, 2), 3: (9, 3), 4: (4, 1), 5: (5, 1), 6: (6, 1), 7: (14, 2), 8: (8, 1), 16: (16, 1)}
LENGTHS = st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 511, 512, 513, 600])


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    gqa, head_dim = draw(st.sampled_from(sorted(HEADS))), draw(st.sampled_from([64, 96, 128, 256]))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16]))
    prefixes = draw(st.lists(LENGTHS, max_size=3))
    rows = draw(st.lists(st.tuples(st.integers(-1, len(prefixes) - 1), LENGTHS), min_size=1, max_size=5))
    num_heads, num_kv_heads = HEADS[gqa]
    return Batch(Shape(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype), rows, prefixes)


@settings(max_examples=15)
@given(batches())
@example(Batch(Shape(num_heads=4, num_kv_heads=2, head_dim=64), [(-1, 0)], []))  # a row that rests
@example(Batch(Shape(num_heads=4, num_kv_heads=2, head_dim=96), [(0, 65), (0, 1)], [0]))  # an empty prefix
@example(Batch(Shape(num_heads=16, num_kv_heads=1, head_dim=256), [(0, 3)] * 5, [513]))  # rows beyond a tile
def test_attention_is_exact_up_to_rounding(backend: str, batch: Batch) -> None:
    with using(backend):
        check(batch)


@pytest.mark.parametrize("gqa", sorted(HEADS))
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_every_group_size_and_head_dim(backend: str, gqa: int, head_dim: int) -> None:
    num_heads, num_kv_heads = HEADS[gqa]
    shape = Shape(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    with using(backend):
        check(Batch(shape, [(0, 33), (0, 80), (-1, 130)], [100]))


@pytest.mark.parametrize("head_dim", [16, 32, 48, 64, 80, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cpu_takes_fp32_and_small_heads(backend: str, head_dim: int, dtype: torch.dtype) -> None:
    if backend == EMULATED:
        pytest.skip("the CUDA kernels are for bf16 and fp16, head_dim 64, 96, 128 and 256")
    with using(backend):
        check(Batch(Shape(num_heads=6, num_kv_heads=2, head_dim=head_dim, dtype=dtype), [(0, 33), (0, 600)], [70]))


def test_a_sequence_of_128k_tokens() -> None:
    check(Batch(Shape(num_heads=2, num_kv_heads=1, head_dim=64), [(0, 131072 - 700), (0, 3)], [700]))


@settings(max_examples=8)
@given(st.sets(st.integers(0, 6), max_size=6), st.sampled_from([(7, 1, 128), (9, 3, 64), (16, 1, 256), (4, 4, 96)]))
def test_a_row_is_bitwise_the_same_whoever_is_in_the_batch(
    backend: str, gone: set[int], sizes: tuple[int, int, int]
) -> None:
    num_heads, num_kv_heads, head_dim = sizes
    shape = Shape(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
    batch = Batch(shape, [(0, 10), (1, 65), (0, 513), (-1, 64), (0, 0), (1, 1), (0, 128)], [530, 64])
    with using(backend):
        output, lse = batch.attend()
        fewer_output, fewer_lse = batch.without(gone).attend()
    left = [row for row in range(7) if row not in gone]
    assert torch.equal(output[left], fewer_output)
    assert torch.equal(lse[left], fewer_lse)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_order_of_warps_matters(seed: int) -> None:
    batch = Batch(Shape(num_heads=8, num_kv_heads=2, head_dim=64), [(0, 90), (0, 200), (-1, 700)], [300])
    with using(EMULATED):
        expected = check(batch)
        try:
            emulated().set_schedule(seed)
            found = batch.attend()
        finally:
            emulated().set_schedule(0)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_the_cpu_agrees_with_the_kernels() -> None:
    """To rounding: the order of the sums is not the same."""
    batch = Batch(Shape(num_heads=14, num_kv_heads=2, head_dim=64), [(0, 90), (0, 200), (-1, 700)], [600])
    with using("plain"):
        cpu, cpu_lse = batch.attend()
    with using(EMULATED):
        cuda, cuda_lse = batch.attend()
    torch.testing.assert_close(cpu.float(), cuda.float(), rtol=2**-7, atol=2e-3)
    torch.testing.assert_close(cpu_lse, cuda_lse, rtol=1e-5, atol=1e-5)


def test_strides_of_a_layered_cache_and_of_a_fused_projection(backend: str) -> None:
    batch = Batch(Shape(num_heads=4, num_kv_heads=2, head_dim=64), [(0, 90), (-1, 70)], [65])
    with using(backend):
        expected = batch.attend()[0]
    fused = torch.full((2, 12, 64), torch.nan, dtype=torch.bfloat16)
    fused[:, 3:7] = batch.query
    batch.query = fused[:, 3:7]
    for name in ("key_pages", "value_pages"):
        pages = getattr(batch, name)
        cache = torch.full((pages.shape[0], 3, *pages.shape[1:]), torch.nan, dtype=pages.dtype)
        cache[:, 1] = pages
        setattr(batch, name, cache[:, 1])
    with using(backend):
        assert torch.equal(batch.attend()[0], expected)


def test_what_does_not_fit_is_refused() -> None:
    batch = Batch(Shape(num_heads=4, num_kv_heads=2, head_dim=64), [(0, 90), (-1, 70)], [65])
    good = dict(batch.__dict__)

    def refused(message: str, **changes: torch.Tensor) -> None:
        plan = batch.plan()
        batch.__dict__.update(changes)
        with pytest.raises(ValueError, match=message):
            batch.attend(plan)
        batch.__dict__.update(good)

    refused(r"query_SHD must be bfloat16 \[2, 4, 64\] on cpu, it is bfloat16 \[1, 4, 64\]", query=batch.query[:1])
    refused(r"query_SHD must be bfloat16 .* it is float16", query=batch.query.half())
    refused(r"every head must be contiguous", query=batch.query.transpose(1, 2).contiguous().transpose(1, 2))
    refused(r"key_pages must be \[pages, kv_heads, 64, head_dim\]", key_pages=batch.key_pages[:, :, :32])
    refused(r"value_pages must be like key_pages", value_pages=batch.value_pages[:-1])
    refused(r"suffix_pages_SM must be int32 \[2, 2\]", suffix_pages=batch.suffix_pages.long())
    wrong = batch.suffix_pages.clone()
    wrong[1, 1] = 1000
    refused(r"page 1 of row 1 is 1000, the cache has pages 0 to", suffix_pages=wrong)
    wrong = batch.prefix_pages.clone()
    wrong[0, 0] = -1
    refused(r"page 0 of group 0 is -1", prefix_pages=wrong)
