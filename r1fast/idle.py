"""Frozen weights that are on a GPU only while they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Idle:
    """Keeps a module's parameters in the host's memory, page-locked, and gives them to the device for as long as asked.

    Nothing comes back from the device: who changes the weights does so while they are idle (`copy_` into them). On a
    CPU they are copied all the same, which is for tests.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self._parameters: list[Tensor] = list(module.parameters())
        if any(parameter.requires_grad for parameter in self._parameters):
            raise ValueError("idle weights are frozen ones: requires_grad_(False) first")
        with torch.no_grad():
            for parameter in self._parameters:
                host = torch.empty(parameter.shape, dtype=parameter.dtype, pin_memory=device.type == "cuda")
                parameter.data = host.copy_(parameter)

    @property
    def num_bytes(self) -> int:
        """What they take on the device while they are used."""
        return sum(parameter.nbytes for parameter in self._parameters)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Within, the parameters are on the device."""
        host = [parameter.data for parameter in self._parameters]
        try:
            for parameter, kept in zip(self._parameters, host, strict=True):
                parameter.data = torch.empty_like(kept, device=self.device).copy_(kept, non_blocking=True)
            yield
        finally:
            for parameter, kept in zip(self._parameters, host, strict=True):
                parameter.data = kept
