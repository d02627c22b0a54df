"""What ranks that hold a model whole exchange in an optimizer step: gradients, and moments that are shared out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from r1fast.config import OptimizerConfig
from r1fast.distributed import Ranks
from r1fast.optimizers import MOMENTS, load_saved_form, make_optimizer, plain_groups, saved_form

BUCKET_NUMBERS = 1 << 26  # of small gradients in one call; r1fast.phase_memory has it, too, and imports no torch


def sum_gradients(ranks: Ranks, parameters: Sequence[Tensor]) -> None:
    """Add up the gradients of all ranks, in place (collective); one that a rank lacks counts as zero.

    Copied are at most `BUCKET_NUMBERS` numbers at a time; a gradient of more goes by itself.
    """
    if ranks.world_size == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
        if len(bucket) == 1:
            ranks.all_reduce_(bucket[0])
            continue
        flat = ranks.all_reduce_(torch.cat([gradient.reshape(-1) for gradient in bucket]))
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


class ReplicaOptimizer:
    """The optimizer of `config` over fp32 parameters that every rank holds whole; no weight decay.

    `shared`: moments are shared out by torch's ZeroRedundancyOptimizer. Each rank updates some parameters, whole ones,
    and sends them to the others; making it, `step` and `state_dict` are then collective. What is saved is the same.
    """

    def __init__(self, parameters: Sequence[Tensor], config: OptimizerConfig, ranks: Ranks, *, shared: bool) -> None:
        self.shared = shared
        self._parameters, self._config, self._ranks = list(parameters), config, ranks
        make = partial(make_optimizer, config=config, fused=self._parameters[0].is_cuda)
        groups: list[dict[str, Any]] = [{"params": self._parameters, "weight_decay": 0.0}]
        if not shared:
            self._outer = self._inner = make(groups)
            self._owned = [list(range(len(self._parameters)))]
            return
        from torch.distributed.optim import ZeroRedundancyOptimizer

        wrap: Any = ZeroRedundancyOptimizer
        zero = wrap(groups, optimizer_class=lambda own, **_: make(own), lr=0.0)
        self._outer, self._inner = zero, zero.optim
        numbers = {parameter: number for number, parameter in enumerate(self._parameters)}
        own = [numbers[parameter] for group in self._inner.param_groups for parameter in group["params"]]
        self._owned = ranks.gather_objects(own)  # rank -> numbers of its parameters, in its optimizer's order

    def step(self, lr: float) -> None:
        """Update the parameters by their gradients."""
        for group in self._outer.param_groups:
            group["lr"] = lr
        with self._ranks.pulse.together("optimizer step") if self.shared else nullcontext():
            self._outer.step()

    def state_dict(self, num_steps: int) -> dict[str, Any]:
        """The `saved_form` after `num_steps` steps. Shared: on rank 0 and the host alone, gathered one by one."""
        saved = saved_form(self._inner, self._config, num_steps)
        if not self.shared:
            return saved
        places = {n: (rank, place) for rank, numbers in enumerate(self._owned) for place, n in enumerate(numbers)}
        states = {}
        for number, parameter in enumerate(self._parameters if num_steps else []):
            owner, place = places[number]
            own = saved["state"].get(place, {}) if owner == self._ranks.rank else {}
            moments = {}
            for key in MOMENTS:
                moment = self._ranks.broadcast_(own[key] if own else torch.zeros_like(parameter), src=owner)
                if self._ranks.rank == 0:
                    moments[key] = moment.cpu()
            self._ranks.pulse.beat("moments gathered")
            if self._ranks.rank == 0:
                states[number] = {"step": torch.tensor(float(num_steps)), **moments}
        return {"state": states, "param_groups": plain_groups([[p.shape for p in self._parameters]], self._config)}

    def load_state_dict(self, saved: Mapping[str, Any], num_steps: int) -> None:
        """Go on from a `state_dict` of any number of ranks, shared or not; ValueError for 8-bit moments as there."""
        own = self._owned[self._ranks.rank if self.shared else 0]
        states = {place: saved["state"][number] for place, number in enumerate(own) if number in saved["state"]}
        groups = self._inner.state_dict()["param_groups"]  # of this configuration, with this rank's parameters
        load_saved_form(self._inner, self._config, {**saved, "state": states, "param_groups": groups}, num_steps)
        for inner, outer in zip(self._inner.param_groups, self._outer.param_groups, strict=True):
            outer.update({key: value for key, value in inner.items() if key != "params"})


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, as many as are `BUCKET_NUMBERS` numbers together, or one."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.numel() > BUCKET_NUMBERS:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
