"""Checks of the tensors that the ops take: ValueError with the argument, what it is and what it must be."""

from __future__ import annotations

import torch
from torch import Tensor

from r1fast.ops.extension import INSTALL_CUDA, cuda_targets

PAGE_TOKENS = 64
CHUNK_TOKENS = 512
MAX_GQA = 16
CUDA_HEAD_DIMS = (64, 96, 128, 256)
MAX_HEAD_DIM = 256
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # as csrc/core/numbers.h numbers them


def describe(tensor: Tensor) -> str:
    """Dtype, shape and device, for error messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"


def check_tensor(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> None:
    """Raises ValueError unless the tensor is a contiguous one of this dtype and shape on this device."""
    expected = f"{str(dtype).removeprefix('torch.')} {list(shape)} on {device}"
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device:
        raise ValueError(f"{name} must be {expected}, it is {describe(tensor)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous, its strides are {tensor.stride()}; call .contiguous()")


def check_heads(name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """Raises ValueError unless the tensor is [rows, heads, head_dim] like the pages, its heads in rows of 16 bytes."""
    if tensor.dtype != like.dtype or tensor.device != like.device or tensor.shape != shape:
        expected = f"{str(like.dtype).removeprefix('torch.')} {list(shape)} on {like.device}"
        raise ValueError(f"{name} must be {expected}, it is {describe(tensor)}")
    per_16_bytes = 16 // tensor.element_size()
    strides = tensor.stride()
    aligned = tensor.data_ptr() % 16 == 0 and all(stride % per_16_bytes == 0 for stride in strides[:-1])
    if strides[-1] != 1 or not aligned:
        raise ValueError(
            f"{name}: every head must be contiguous and begin on 16 bytes; its strides are {strides}, "
            f"its address ends with {tensor.data_ptr() % 16}; call .contiguous()"
        )


def check_pages(key_pages: Tensor, value_pages: Tensor) -> tuple[int, int, int]:
    """(num_pages, num_kv_heads, head_dim) of a layer's pages [pages, kv_heads, 64, head_dim]. Raises ValueError."""
    if key_pages.ndim != 4 or key_pages.shape[2] != PAGE_TOKENS or key_pages.dtype not in DTYPES:
        raise ValueError(
            f"key_pages must be [pages, kv_heads, {PAGE_TOKENS}, head_dim] of bfloat16, float16 or (on a CPU) float32, "
            f"it is {describe(key_pages)}"
        )
    num_pages, num_kv_heads, _, head_dim = key_pages.shape
    if value_pages.shape != key_pages.shape or value_pages.dtype != key_pages.dtype:
        raise ValueError(f"value_pages must be like key_pages, {describe(key_pages)}, it is {describe(value_pages)}")
    if value_pages.device != key_pages.device or value_pages.stride() != key_pages.stride():
        raise ValueError(
            f"value_pages must lie like key_pages, with strides {key_pages.stride()} on {key_pages.device}; "
            f"it has {value_pages.stride()} on {value_pages.device}"
        )
    starts = [key_pages.data_ptr(), value_pages.data_ptr()]
    starts += [stride * key_pages.element_size() for stride in key_pages.stride()[:2]]
    if key_pages.stride()[2:] != (head_dim, 1) or any(start % 16 for start in starts):
        raise ValueError(
            f"each (page, head) tile of {PAGE_TOKENS} x {head_dim} must be contiguous and begin on 16 bytes; "
            f"the strides are {key_pages.stride()}"
        )
    if key_pages.is_cuda:
        if not cuda_targets():
            raise RuntimeError(f"r1fast._C was built without its CUDA kernels: {INSTALL_CUDA}")
        if head_dim not in CUDA_HEAD_DIMS or key_pages.dtype == torch.float32:
            raise ValueError(
                f"on CUDA head_dim must be one of {CUDA_HEAD_DIMS} and the dtype bfloat16 or float16; "
                f"key_pages is {describe(key_pages)}"
            )
    elif head_dim % 16 or head_dim > MAX_HEAD_DIM:
        raise ValueError(f"head_dim = {head_dim} must be a multiple of 16, at most {MAX_HEAD_DIM}")
    return num_pages, num_kv_heads, head_dim


def check_gqa(num_heads: int, num_kv_heads: int) -> int:
    """Query heads for each KV head. Raises ValueError."""
    gqa, rest = divmod(num_heads, num_kv_heads)
    if rest or not 1 <= gqa <= MAX_GQA:
        raise ValueError(
            f"{num_heads} query heads for {num_kv_heads} KV heads: there must be the same number, "
            f"1 to {MAX_GQA}, for each KV head"
        )
    return gqa


def pointer(tensor: Tensor | None) -> int:
    """The address that the extension takes, 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()
