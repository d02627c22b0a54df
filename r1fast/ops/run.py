"""Calls the extension's op for a tensor's device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1fast.ops.extension import extension


def run(op: str, params: Any, like: Tensor) -> None:
    """`op`_cuda on the current stream of the tensor's GPU, `op`_cpu on as many threads as PyTorch uses.

    Waits for no GPU and allocates nothing. Raises RuntimeError with the op's name where the launch fails.
    """
    if like.is_cuda:
        with torch.cuda.device(like.device):
            getattr(extension(), f"{op}_cuda")(params, torch.cuda.current_stream().cuda_stream)
    elif like.device.type == "cpu":
        getattr(extension(), f"{op}_cpu")(params, torch.get_num_threads())
    else:
        raise ValueError(f"{op} runs on CPU and CUDA tensors, these are on {like.device}")
