"""Copies whole pages, K and V of all layers: within a cache (forks that write), to the host's cache and back."""

# L layers, P pages, K KV heads, D head_dim

from __future__ import annotations

import torch
from torch import Tensor

from r1fast.ops.checks import PAGE_TOKENS, check_pages, check_tensor, describe
from r1fast.ops.extension import extension
from r1fast.ops.run import run


def kv_copy(key_pages: Tensor, value_pages: Tensor, source: Tensor, destination: Tensor) -> None:
    """Page `source[i]` of every layer to page `destination[i]` of the same cache [L, P, K, 64, D].

    The lists are int32 on the CPU whatever the cache's device, and are checked there: a page beyond the cache, a
    destination listed twice, or a page that is both a source and a destination is a ValueError. On CUDA it waits for
    nothing and allocates nothing; a CUDA graph that captures it keeps these lists.
    """
    _move("kv_copy", (key_pages, value_pages), (key_pages, value_pages), source, destination)


def kv_swap(
    source_key: Tensor,
    source_value: Tensor,
    destination_key: Tensor,
    destination_value: Tensor,
    source: Tensor,
    destination: Tensor,
) -> None:
    """Page `source[i]` of one cache to page `destination[i]` of another: [L, P, K, 64, D], alike but for P and strides.

    One of both may be on a GPU; the other is then in page-locked host memory (`pin_memory=True`). What is copied is in
    order on the GPU's current stream: before the host reads its pages, or gives them up, synchronise. Raises ValueError
    as kv_copy, and for caches that overlap in memory, are on two GPUs, or are not page-locked.
    """
    _check_alike((source_key, source_value), (destination_key, destination_value))
    _move("kv_swap", (source_key, source_value), (destination_key, destination_value), source, destination)


def _move(op: str, origin: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor], source: Tensor, to: Tensor) -> None:
    layers, pages, heads, tile_bytes = _check_cache(*origin)
    target_pages = pages if target is origin else _check_cache(*target)[1]
    cpu = torch.device("cpu")
    check_tensor("source", source, torch.int32, (source.numel(),), cpu)
    check_tensor("destination", to, torch.int32, (source.numel(),), cpu)
    strides, target_strides = _byte_strides(origin[0]), _byte_strides(target[0])
    params = extension().KvCopyParams(
        source_key=origin[0].data_ptr(),
        source_value=origin[1].data_ptr(),
        destination_key=target[0].data_ptr(),
        destination_value=target[1].data_ptr(),
        source_page=source.data_ptr(),
        destination_page=to.data_ptr(),
        source_layer_stride=strides[0],
        source_page_stride=strides[1],
        source_head_stride=strides[2],
        destination_layer_stride=target_strides[0],
        destination_page_stride=target_strides[1],
        destination_head_stride=target_strides[2],
        tile_bytes=tile_bytes,
        num_pairs=source.numel(),
        num_layers=layers,
        num_kv_heads=heads,
        num_source_pages=pages,
        num_destination_pages=target_pages,
    )
    if source.numel():
        run(op, params, target[0] if target[0].is_cuda else origin[0])


def _check_cache(key_pages: Tensor, value_pages: Tensor) -> tuple[int, int, int, int]:
    """(layers, pages, KV heads, bytes of a tile). Raises ValueError."""
    if key_pages.ndim != 5 or value_pages.ndim != 5 or not key_pages.shape[0] or key_pages.shape != value_pages.shape:
        raise ValueError(
            f"key_pages and value_pages must be [layers, pages, kv_heads, 64, head_dim], "
            f"they are {describe(key_pages)} and {describe(value_pages)}"
        )
    pages, heads, head_dim = check_pages(key_pages[0], value_pages[0])
    if any(stride % 16 for stride in _byte_strides(key_pages)) or key_pages.stride() != value_pages.stride():
        raise ValueError(
            f"every (layer, page, head) must begin on 16 bytes, of key_pages and value_pages alike; "
            f"the strides are {key_pages.stride()} and {value_pages.stride()}"
        )
    return key_pages.shape[0], pages, heads, PAGE_TOKENS * head_dim * key_pages.element_size()


def _byte_strides(pages: Tensor) -> list[int]:
    return [stride * pages.element_size() for stride in pages.stride()[:3]]


def _check_alike(origin: tuple[Tensor, Tensor], target: tuple[Tensor, Tensor]) -> None:
    """Caches of the same model, apart from each other, that one GPU or the CPU can reach. Raises ValueError."""
    for ours in origin:
        for theirs in target:
            if ours.ndim != theirs.ndim or ours.dtype != theirs.dtype or _model(ours) != _model(theirs):
                raise ValueError(f"the caches must be alike but for their pages: {describe(ours)}, {describe(theirs)}")
            if ours.device == theirs.device and _overlap(ours, theirs):
                raise ValueError("the caches overlap in memory; use kv_copy within one cache")
            if ours.is_cuda and theirs.is_cuda:
                raise ValueError(f"one cache must be on the CPU, they are on {ours.device} and {theirs.device}")
    places = [tensor.device for tensor in (*origin, *target)]
    if any(place.type not in ("cpu", "cuda") for place in places):
        raise ValueError(f"the caches must be on the CPU or a GPU, they are on {', '.join(map(str, places))}")
    on_gpu = any(tensor.is_cuda for tensor in (*origin, *target))
    if on_gpu and not all(tensor.is_cuda or tensor.is_pinned() for tensor in (*origin, *target)):
        raise ValueError("the host's pages must be page-locked for a GPU to reach them; make them with pin_memory=True")


def _model(pages: Tensor) -> tuple[int, ...]:
    return (*pages.shape[:1], *pages.shape[2:])


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Whether the bytes from the first to the last number of each have any in common."""
    if not first.numel() or not second.numel():
        return False
    last, other_last = (tensor[tuple(n - 1 for n in tensor.shape)].data_ptr() for tensor in (first, second))
    return first.data_ptr() <= other_last and second.data_ptr() <= last
