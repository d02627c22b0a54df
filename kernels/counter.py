"""Where the programs of a kernel count themselves, so that the last one knows that it is."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def resting_counter(device: torch.device) -> Tensor:
    """int32 [1] on `device`, the current one: a zero that each launch on the current stream finds and leaves.

    One for all launches of a stream, which run one after another: making one would be a launch of its own. A CUDA
    graph makes its own each time it is replayed, for it may run beside the stream's other launches.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(1, dtype=torch.int32, device=device)
    return _of_stream(torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream)


@functools.cache
def _of_stream(device: int, stream: int) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=f"cuda:{device}")
