"""Checks of the arguments that the ops share: ValueError with the argument, its value and the constraint."""

# T packed tokens, V vocabulary

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
"""What the ops compute with."""


def uses_triton(x: Tensor) -> bool:
    """Whether the Triton kernels take this tensor: on CUDA, and on the CPU where TRITON_INTERPRET=1; never fp64.

    The variable must be set before Triton is first imported.
    """
    if x.dtype == torch.float64:
        return False
    return x.is_cuda or (x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """The tensor's GPU as the current one: Triton launches there."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """fp32, or fp64 for fp64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def describe(tensor: Tensor) -> str:
    """Dtype, shape and device, for error messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"


def check_targets(targets_T: Tensor, num_tokens: int, device: torch.device) -> None:
    """Raises ValueError unless integer [T] on `device`."""
    if targets_T.shape != (num_tokens,) or targets_T.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"targets must be int32 or int64 [{num_tokens}], they are {describe(targets_T)}")
    if targets_T.device != device:
        raise ValueError(f"targets are on {targets_T.device}, the rest on {device}; move them")


def check_scaling(temperature: float | Tensor, softcap: float | None, num_tokens: int, device: torch.device) -> None:
    """Raises ValueError for a temperature or a soft cap that does not fit the tokens, or a number not positive."""
    if isinstance(temperature, Tensor):
        if temperature.shape != (num_tokens,) or not temperature.is_floating_point() or temperature.device != device:
            raise ValueError(
                f"temperature must be a number or floating [{num_tokens}] on {device}, it is {describe(temperature)}"
            )
        if temperature.requires_grad:
            raise ValueError("temperature gets no gradient here; pass temperature.detach()")
    elif not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature = {temperature} must be positive and finite; 0 (greedy) has no log-probs")
    if softcap is not None and not (softcap > 0 and math.isfinite(softcap)):
        raise ValueError(f"softcap = {softcap} must be positive and finite, or None for no cap")


def reads_values(x: Tensor, check: bool) -> bool:
    """Whether values are looked at: on the CPU, where reading waits for nothing, elsewhere if the caller asks."""
    return x.numel() > 0 and (check or x.device.type == "cpu")


def check_values(targets_T: Tensor, vocabulary: int, temperature_T: Tensor | None, check: bool) -> None:
    """ValueError for a value out of range, where values are read.

    The ops call it from inside, where torch.compile does not look.
    """
    if not reads_values(targets_T, check):
        return
    low, high = (int(value) for value in torch.aminmax(targets_T))
    if low < 0 or high >= vocabulary:
        raise ValueError(
            f"targets range from {low} to {high}, the vocabulary from 0 to {vocabulary - 1}; "
            "leave tokens out with the loss's mask, not with an ignore index"
        )
    if temperature_T is not None and not bool(((temperature_T > 0) & temperature_T.isfinite()).all()):
        raise ValueError(f"temperature must be positive and finite, its least value is {float(temperature_T.min())}")
