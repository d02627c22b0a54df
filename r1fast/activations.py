"""What backward needs of a forward pass: kept, made again, or kept in the host's memory.

The last is `torch.autograd.graph.save_on_cpu` but for weights: it would copy those, too, which products save, and an
activation once for every operation that saves it; here weights stay where they are and a tensor goes to the host once.
With gradient checkpointing what a layer saves is its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers.modeling_layers import GradientCheckpointingLayer

LEAST_BYTES = 1 << 16  # smaller ones, such as a norm's factors, cost a launch and free nothing


@dataclass(frozen=True)
class _OnHost:
    """A tensor's numbers on the host, and the device they come back to."""

    values: Tensor
    device: torch.device


class _Store:
    """Packs what autograd saves. Copies run in the order of the device's stream: nobody waits for them."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.pinned = device.type == "cuda"
        self.kept = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
        self.kept |= {buffer.untyped_storage().data_ptr() for buffer in module.buffers()}
        self.seen: dict[tuple[object, ...], tuple[StorageWeakRef, _OnHost]] = {}
        self.num_bytes = 0

    def pack(self, tensor: Tensor) -> Tensor | _OnHost:
        storage = tensor.untyped_storage()
        if tensor.nbytes < LEAST_BYTES or storage.data_ptr() in self.kept or tensor.layout != torch.strided:
            return tensor
        # a weak reference keeps the storage's number from being given to another while the pass lasts
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        key = (reference.cdata, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version)
        if key not in self.seen:
            values = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self.pinned)
            values.copy_(tensor, non_blocking=True)
            self.seen[key] = reference, _OnHost(values, tensor.device)
            self.num_bytes += values.nbytes
        return self.seen[key][1]

    @staticmethod
    def unpack(packed: Tensor | _OnHost) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        return torch.empty_like(packed.values, device=packed.device).copy_(packed.values, non_blocking=True)


@contextmanager
def offloaded_activations(module: nn.Module, device: torch.device) -> Iterator[_Store]:
    """Within a forward pass, what autograd saves of it goes to the host; backward brings it back, bit by bit."""
    store = _Store(module, device)
    with torch.autograd.graph.saved_tensors_hooks(store.pack, store.unpack):
        yield store
    store.seen.clear()  # the graph holds what it needs


def enable_checkpointing(module: nn.Module) -> None:
    """Prepare the layers of a transformers model for `kept_activations(recompute=True)`."""
    # later transformers renamed it and warn of the old name
    new_name = hasattr(module, "activation_checkpointing_enable")
    enable: Any = getattr(module, f"{'activation' if new_name else 'gradient'}_checkpointing_enable")
    enable({"use_reentrant": False})


@contextmanager
def kept_activations(module: nn.Module, device: torch.device, *, recompute: bool, offload: bool) -> Iterator[None]:
    """Within, a forward pass whose backward is to come keeps of its layers what the options say; others keep nothing.

    `recompute`: each layer's input, from which backward makes the rest again. `offload`: on the host. Layers recompute
    only when in training mode, and nothing else of the model may be (dropout, router noise).
    """
    backward = torch.is_grad_enabled()
    layers = [m for m in module.modules() if recompute and backward and isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer.training = True
    try:
        with offloaded_activations(module, device) if offload and backward else nullcontext():
            yield
    finally:
        for layer in layers:
            layer.training = False
