"""Which compute dtypes this CPU has matrix products for."""

from __future__ import annotations

import torch


def multiplied_in_fp32(dtype: torch.dtype) -> bool:
    """Whether oneDNN, where it is built in, has no products of `dtype` here: bf16 wants AVX512 or avx_ne_convert.

    Then PyTorch's own bf16 product takes about eight times as long as its fp32 one, and the rollout takes that.
    """
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def slow_dtype_hint(dtype: torch.dtype, device: torch.device) -> str:
    """A sentence where training in `dtype` would be much slower here than in another one; empty where not."""
    if device.type != "cpu" or not multiplied_in_fp32(dtype):
        return ""
    return (
        "this CPU has no instructions for bfloat16 products (AVX512 or avx_ne_convert), so that training takes several "
        "times as long as with --run.dtype float32"
    )
