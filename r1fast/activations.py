"""What backward needs of a forward pass, kept in the host's memory: `torch.autograd.graph.save_on_cpu` but for weights.

`save_on_cpu` would copy the weights, too, which products save, and an activation once for every operation that saves
it; here weights stay where they are and a tensor goes to the host once. With gradient checkpointing what a layer saves
is its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

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
