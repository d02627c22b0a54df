"""kv_copy and kv_swap: threads and the emulated kernel, any strides; a sequence that was away attends as before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from backends import EMULATED, using
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1fast.ops import extension
from r1fast.ops.decode_plan import DecodePlan, decode_plan
from r1fast.ops.kv_append import kv_append
from r1fast.ops.kv_copy import kv_copy, kv_swap
from r1fast.ops.page_pool import PagePool
from r1fast.ops.paged_decode import attention_merge, paged_decode

LAYERS, HEADS = 3, 2
Cache = tuple[Tensor, Tensor]


@pytest.fixture(params=["plain", EMULATED], scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def make_cache(num_pages: int, head_dim: int, dtype: torch.dtype, *, by_page: bool = False, seed: int = 0) -> Cache:
    """Random bits, NaN among them; `by_page`: in memory [P, L, K, 2, 64, D], a page of all layers in one piece."""
    generator = torch.Generator().manual_seed(seed)
    shape = (num_pages, LAYERS, HEADS, 2, 64, head_dim) if by_page else (2, LAYERS, num_pages, HEADS, 64, head_dim)
    integers = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    most = torch.iinfo(integers).max
    both = torch.randint(-most, most, shape, generator=generator, dtype=integers).view(dtype)
    if by_page:
        both = both.permute(3, 1, 0, 2, 4, 5)
    return both[0], both[1]


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def pages(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int32)


@settings(max_examples=12)
@given(
    st.permutations(range(9)),
    st.integers(0, 4),
    st.sampled_from([(64, torch.bfloat16), (96, torch.float16), (128, torch.bfloat16), (80, torch.float32)]),
    st.booleans(),
)
def test_pages_are_copied_in_every_layer_and_nothing_else_is(
    backend: str, order: list[int], count: int, kind: tuple[int, torch.dtype], by_page: bool
) -> None:
    cache = make_cache(9, *kind, by_page=by_page)
    source, destination = pages(*order[:count]), pages(*order[count : 2 * count])
    expected = [bits(tensor).clone() for tensor in cache]
    for tensor in expected:
        tensor[:, destination.long()] = tensor[:, source.long()]
    with using(backend):
        kv_copy(*cache, source, destination)
    for tensor, correct in zip(cache, expected, strict=True):
        assert torch.equal(bits(tensor), correct)


def test_a_swap_there_and_back_is_bitwise_for_more_pages_than_a_launch_takes(backend: str) -> None:
    count = 460
    device, host = make_cache(count, 16, torch.bfloat16), make_cache(count, 16, torch.bfloat16, by_page=True, seed=1)
    before = [bits(tensor).clone() for tensor in device]
    there, back = torch.randperm(count).int(), torch.randperm(count).int()
    with using(backend):
        kv_swap(*device, *host, torch.arange(count).int(), there)
        for tensor in device:
            tensor.fill_(torch.nan)
        kv_swap(*host, *device, there, back)
    for tensor, correct in zip(device, before, strict=True):
        assert torch.equal(bits(tensor)[:, back.long()], correct)


@pytest.mark.gpu
def test_a_gpu_swaps_with_page_locked_memory_and_with_no_other() -> None:
    device = tuple(tensor.cuda() for tensor in make_cache(500, 128, torch.bfloat16))
    before = [bits(tensor).clone() for tensor in device]
    pageable = make_cache(500, 128, torch.bfloat16, seed=1)
    there, back, all_pages = torch.randperm(500).int(), torch.randperm(500).int(), torch.arange(500).int()
    with pytest.raises(ValueError, match=r"must be page-locked"):
        kv_swap(*device, *pageable, all_pages, there)
    host = tuple(tensor.pin_memory() for tensor in pageable)
    kv_swap(*device, *host, all_pages, there)
    for tensor in device:
        tensor.fill_(torch.nan)
    kv_swap(*host, *device, there, back)
    kv_copy(*device, back[:200], back[200:400])
    for tensor, correct in zip(device, before, strict=True):
        found = bits(tensor)[:, back.long().cuda()]
        assert torch.equal(found[:, :200], correct[:, :200])
        assert torch.equal(found[:, 200:400], correct[:, :200])
        assert torch.equal(found[:, 400:], correct[:, 400:])


def test_what_does_not_fit_is_refused(backend: str) -> None:
    cache, host = make_cache(4, 64, torch.bfloat16), make_cache(3, 64, torch.bfloat16, seed=1)
    before = bits(cache[0]).clone()

    def refused(message: str, call: Callable[..., None], *arguments: Any) -> None:
        with using(backend), pytest.raises(ValueError, match=message):
            call(*arguments)
        assert torch.equal(bits(cache[0]), before)

    refused(r"kv_copy: source\[1\] = 4 is not one of the 4 pages", kv_copy, *cache, pages(0, 4), pages(1, 2))
    refused(r"kv_copy: destination\[0\] = -1 is not one", kv_copy, *cache, pages(0), pages(-1))
    refused(r"kv_copy: destination\[2\] = 3 is listed twice", kv_copy, *cache, pages(0, 1, 2), pages(3, 1, 3))
    refused(r"kv_copy: page 1 is a source and a destination", kv_copy, *cache, pages(0, 1), pages(1, 2))
    refused(r"kv_copy: page 0 is a source and a destination", kv_copy, *cache, pages(0), pages(0))
    refused(r"kv_swap: destination\[0\] = 3 is not one of the 3", kv_swap, *cache, *host, pages(1), pages(3))
    refused(r"destination must be int32 \[2\] on cpu", kv_copy, *cache, pages(0, 1), pages(2))
    refused(r"source must be int32 \[1\] on cpu, it is int64", kv_copy, *cache, pages(0).long(), pages(2))
    refused(r"source must be int32 .* it is int32 \[1\] on meta", kv_copy, *cache, pages(0).to("meta"), pages(2))
    refused(r"must be \[layers, pages, kv_heads, 64, head_dim\]", kv_copy, cache[0][0], cache[1][0], pages(), pages())
    refused(r"the caches overlap in memory", kv_swap, *cache, cache[0][:, 1:], cache[1][:, 1:], pages(0), pages(2))
    other = make_cache(4, 128, torch.bfloat16)
    refused(r"must be alike but for their pages", kv_swap, *cache, *other, pages(0), pages(0))
    meta = (tensor.to("meta") for tensor in host)
    refused(
        r"must be on the CPU or a GPU, they are on cpu, cpu, meta, meta", kv_swap, *cache, *meta, pages(0), pages(0)
    )
    refused(r"must be alike", kv_swap, *cache, *(tensor[:2] for tensor in host), pages(0), pages(0))


def test_a_launch_without_a_driver_names_the_op() -> None:
    module, lists = extension.extension(), pages(0, 1)
    if not extension.cuda_targets() or torch.cuda.is_available():
        pytest.skip("needs the CUDA kernels built (nvcc) and no GPU")
    address = {"source_page": lists.data_ptr(), "destination_page": lists.data_ptr() + 4}
    sizes = {"num_pairs": 1, "num_layers": 1, "num_kv_heads": 1, "num_source_pages": 2, "num_destination_pages": 2}
    params = module.KvCopyParams(**address, **sizes)
    for op in ("kv_copy", "kv_swap"):
        with pytest.raises(RuntimeError, match=rf"{op}: there is no usable NVIDIA GPU or driver here"):
            getattr(module, f"{op}_cuda")(params, 0)


def test_forks_and_swapped_sequences_attend_as_those_that_stayed(backend: str) -> None:
    """Two samples of one prompt, one forked in mid-generation and swapped out: the same tokens give the same bits."""
    tokens = torch.randn(2, 230, HEADS, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    size = {"max_suffix_tokens": 256, "max_prefix_tokens": 128}
    pool = PagePool(num_pages=12, num_host_pages=4, num_sequences=4, num_rows=3, num_groups=1, **size)
    device = tuple(torch.full((1, 12, HEADS, 64, 64), torch.nan).bfloat16() for _ in range(2))
    host = tuple(torch.full((1, 4, HEADS, 64, 64), torch.nan).bfloat16() for _ in range(2))

    def write(slots: Tensor, begin: int) -> None:
        part = tokens[:, begin : begin + len(slots)]
        kv_append(part[0], part[1], device[0][0], device[1][0], slots)

    def attend(rows: int) -> Tensor:
        plan = DecodePlan.allocate(num_rows=3, num_groups=1, num_heads=6, num_kv_heads=HEADS, head_dim=64, **size)
        tables = pool.tables
        decode_plan(plan, tables.suffix_length_S, tables.group_S, tables.prefix_length_G)
        query = (
            torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1)).bfloat16().expand(3, 6, 64).contiguous()
        )
        paged_decode(plan, query, device[0][0], device[1][0], tables.suffix_pages_SM, tables.prefix_pages_GM)
        output = torch.empty_like(query)
        attention_merge(plan, output)
        return output[:rows]

    with using(backend):
        group = pool.add_group(100)
        write(pool.prefix_slots(group, 0, 100), 0)
        (first,) = pool.add_sequences(1, group)
        slots, _ = pool.append([first], 90)
        write(slots, 100)
        second = pool.fork(first)
        for sequence in (first, second):
            slots, moves = pool.append([sequence], 40)
            kv_copy(*device, moves.source, moves.destination)
            write(slots, 190)
        pool.bind(first, 0)
        pool.bind(second, 1)
        before = attend(2)
        assert not before.isnan().any()
        assert torch.equal(before[0], before[1])
        moves = pool.swap_out([second])
        kv_swap(*device, *host, moves.source, moves.destination)
        for tensor in device:
            tensor[:, moves.source[pool_pages_free(pool, moves.source)].long()] = torch.nan
        (other,) = pool.add_sequences(1)
        slots, _ = pool.append([other], 64)
        write(slots, 0)
        moves = pool.swap_in([second])
        kv_swap(*host, *device, moves.source, moves.destination)
        pool.bind(second, 2)
        after = attend(3)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[0])
    pool.check()


def pool_pages_free(pool: PagePool, numbers: Tensor) -> Tensor:
    return torch.tensor([pool.references(page) == 0 for page in numbers.tolist()])
