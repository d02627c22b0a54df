"""Which compute dtypes this CPU has matrix products for."""

from __future__ import annotations

import torch


def multiplied_in_fp32(dtype: torch.dtype) -> bool:
    """Whether this CPU has no instructions for products of `dtype`: bf16 wants AVX512 or avx_ne_convert.

    Then PyTorch's own bf16 product takes about eight times as long as its fp32 one, and the rollout takes that.
    """
    return dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def slow_dtype_hint(dtype: torch.dtype, device: torch.device) -> str:
    """A sentence where training in `dtype` would be much slower here than in another one; empty where not."""
    if device.type != "cpu" or not multiplied_in_fp32(dtype):
        return ""
    return (
        "this CPU has no instructions for bfloat16 products (AVX512 or avx_ne_convert), so that training takes several "
        "times as long as with --run.dtype float32"
    )
