"""Masters and moments that DeepSpeed's ZeRO has shared out, read and set parameter by parameter (all collective).

ZeRO 0 shares nothing out: there a parameter, in fp32, is its own master.

DeepSpeed's own accessors (`deepspeed.utils.safe_get_full_*`) do it, but for three gaps of 0.19: with several parameter
groups ZeRO 1 and 2 link the moments of the first alone; a fresh optimizer has no moments to set; and ZeRO 3's setters
refuse parameters that the processes do not divide evenly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from r1fast.optimizers import MOMENTS


class ZeroState:
    """Of a DeepSpeed engine with AdamW. `stage`: of ZeRO."""

    def __init__(self, engine: Any, stage: int) -> None:
        from deepspeed import utils

        self._utils, self._wrapped, self._inner, self._stage = utils, engine.optimizer, engine.basic_optimizer, stage

    def master(self, parameter: Tensor) -> Tensor:
        """The whole float32 master of a parameter."""
        if self._stage == 0:
            return parameter.detach()
        found: Tensor = self._utils.safe_get_full_fp32_param(parameter)
        return found

    def moment(self, parameter: Tensor, key: str) -> Tensor:
        """A whole moment of a parameter; after `link`."""
        if self._stage == 0:
            own: Tensor = self._inner.state[parameter][key]
            return own
        found: Tensor = self._utils.safe_get_full_optimizer_state(parameter, key)
        return found

    def set_master(self, parameter: Tensor, value: Tensor) -> None:
        """Set this process's part of it; the parameter itself stays as it is."""
        if self._stage == 3:
            self._utils.safe_set_local_fp32_param(parameter, _part(parameter, value))
        elif self._stage > 0:
            self._utils.safe_set_full_fp32_param(parameter, value)

    def set_moment(self, parameter: Tensor, key: str, value: Tensor) -> None:
        """Set this process's part of it; after `link`."""
        if self._stage == 0:
            self._inner.state[parameter][key].copy_(value)
        elif self._stage == 3:
            self._utils.safe_set_local_optimizer_state(parameter, _part(parameter, value), key)
        else:
            self._utils.safe_set_full_optimizer_state(parameter, value, key)

    def link(self) -> None:
        """Make the moments that a fresh optimizer lacks, and let the accessors find all of them."""
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        for number, flat in enumerate(self._flats()):
            state = self._inner.state[flat]
            for key in MOMENTS:
                if key not in state:
                    state[key] = torch.zeros_like(flat)
            # torch counts in a tensor, DeepSpeed's and apex's own in a number
            counts_in_tensor = isinstance(self._inner, torch.optim.AdamW)
            state.setdefault("step", torch.tensor(0.0) if counts_in_tensor else 0)
            if 0 < self._stage < 3:
                lazy_init_hp_params_optimizer_state(self._groups()[number], flat, self._inner.state)

    def set_steps(self, num_steps: int) -> None:
        """How many steps the moments have seen, which AdamW's bias correction reads."""
        for flat in self._flats():
            state = self._inner.state[flat]
            if isinstance(state.get("step"), Tensor):
                state["step"].fill_(float(num_steps))
            elif "step" in state:
                state["step"] = num_steps
        if not isinstance(self._inner, torch.optim.AdamW):
            for group in self._inner.param_groups:
                group["step"] = num_steps

    def drop_sums(self) -> None:
        """Forget the gradients' sums, which DeepSpeed (0.19) keeps after a refused update, with offload in bfloat16."""
        if 0 < self._stage < 3:
            sums = getattr(self._wrapped, "averaged_gradients", {})  # ZeRO 1 in bfloat16 without offload has others
            sums.update(dict.fromkeys(sums))

    def _flats(self) -> list[Tensor]:
        """The tensors that the inner optimizer updates: of each group this process's part, flat; in ZeRO 0 all."""
        if self._stage == 0:
            return [parameter for group in self._inner.param_groups for parameter in group["params"]]
        names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
        return list(self._first(*names))

    def _groups(self) -> list[list[Tensor]]:
        """The parameters behind each of them."""
        return list(self._first("bit16_groups", "bf16_groups"))

    def _first(self, *names: str) -> Any:
        """What ZeRO 3, ZeRO 1 and 2, or ZeRO 1 with bfloat16 (a class of its own) call the same thing."""
        return next(getattr(self._wrapped, name) for name in names if hasattr(self._wrapped, name))


def _part(parameter: Any, value: Tensor) -> Tensor:
    """This process's part of a value, as ZeRO 3 cuts it: equal parts, the last one padded."""
    size = int(parameter.ds_tensor.ds_numel)
    rank = torch.distributed.get_rank()
    flat = value.flatten()[rank * size : (rank + 1) * size]
    return torch.cat([flat, flat.new_zeros(size - len(flat))])
