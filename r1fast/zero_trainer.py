"""The optimizer step by DeepSpeed's ZeRO: what `Trainer` does, with masters, gradients and parameters shared out.

The loss, the global denominator, checks and metrics are `Trainer`'s; what is saved is the same, too, so that a run goes
on with another number of processes, another stage of ZeRO, or without DeepSpeed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from r1fast.bad_step import require_good
from r1fast.config import ConfigError, OptimizerConfig
from r1fast.distributed import Ranks, merge
from r1fast.distributed_config import DistributedConfig
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.optimizers import MOMENTS, adamw_groups, check_form, import_deepspeed, make_optimizer, plain_groups
from r1fast.policy import Policy
from r1fast.records import Batch
from r1fast.schedule import at
from r1fast.sharded import ZeroForward, join_alone, one_token, track
from r1fast.trainer import Logprobs, check_step, to_floats
from r1fast.whole import whole_shape
from r1fast.zero_config import deepspeed_options
from r1fast.zero_state import ZeroState


class ZeroTrainer:
    """`Trainer` on DeepSpeed. A `policy.module` that is whole stays so on every process: rollouts and scoring read it.

    With ZeRO 0 to 2 it is what is trained; with ZeRO 3 a sharded copy of it is, gathered into it after every step. A
    policy with `shards` is trained as it is. Every method is collective.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerConfig,
        distributed: DistributedConfig,
        *,
        ranks: Ranks | None = None,
        logprobs: Logprobs | None = None,
    ) -> None:
        """Raises ConfigError for an installation or options that DeepSpeed cannot work with."""
        self.deepspeed = import_deepspeed("distributed.engine = 'deepspeed'")
        self.policy, self.config, self.ranks = policy, optimizer, ranks or Ranks()
        self.num_steps = 0
        self._sharded, self._whole = distributed.zero_stage == 3, distributed.zero_stage == 0
        self._copies = self._sharded and policy.shards is None
        self._on_disk = "nvme" in (distributed.offload_optimizer, distributed.offload_parameters)
        if self._whole and policy.dtype != torch.float32:
            raise ConfigError(
                f"distributed.zero_stage = 0 with parameters in {str(policy.dtype).removeprefix('torch.')}: DeepSpeed "
                "sums up float32 gradients for them from zero_stage = 1 on; use 1, or distributed.engine = 'torch', "
                "which shares nothing out either"
            )
        trained = replace(policy, module=copy.deepcopy(policy.module)) if self._copies else policy
        named = [(name, p) for name, p in trained.module.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the policy has no trainable parameter; a copy() is frozen, train the original")
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self._shapes = [whole_shape(p) for p in self.parameters]
        self._own = dict(policy.module.named_parameters())
        if policy.shards is None:
            for parameter in self._own.values():
                self.ranks.broadcast_(parameter.data)
        join_alone(self.ranks)
        # faster on a CPU; on a GPU the step counts, which `ZeroState.link` makes on the host, would have to be there
        fused = policy.device.type == "cpu"
        inner = make_optimizer(adamw_groups(self.parameters), optimizer, fused=fused)
        self._group_shapes = [[whole_shape(p) for p in group["params"]] for group in inner.param_groups]
        self.engine, *_ = self.deepspeed.initialize(
            model=ZeroForward(trained, logprobs),
            optimizer=inner,
            config=deepspeed_options(distributed, str(policy.dtype).removeprefix("torch.")),
            dist_init_required=None,
        )
        track(self.engine)
        if policy.shards is not None:
            policy.shards.engine = self.engine
        self.held = ZeroState(self.engine, distributed.zero_stage)
        self._clip = _Clip(self.parameters)
        if self._whole:
            inner.register_step_pre_hook(self._clip)

    def step(
        self,
        batches: list[Batch],
        *,
        loss: PolicyLoss,
        denominator: float,
        lr: float,
        temperature: float = 1.0,
        old_logp: list[Tensor] | None = None,
        ref_logp: list[Tensor] | None = None,
        check: Callable[[dict[str, float]], None] | None = None,
        most_norm: float = math.inf,
    ) -> dict[str, float]:
        """As `Trainer.step`; ranks may have different numbers of micro-batches.

        Raises ValueError for a finite `most_norm`: DeepSpeed tells the norm with the update alone.
        """
        if math.isfinite(most_norm):
            raise ValueError(f"most_norm = {most_norm} needs distributed.engine = 'torch'; DeepSpeed cannot wait")
        olds, refs = check_step(batches, denominator, lr, old_logp, ref_logp)
        settings = {"options": loss, "denominator": denominator, "temperature": temperature}
        parts: list[dict[str, Any]] = [{"loss_sum": 0.0, "packed_tokens_count": 0.0}]
        filled = [one for one in zip(batches, olds, refs, strict=True) if len(one[0].targets)]
        for number in range(self._num_rounds(len(filled))):
            if number >= len(filled):
                self._backward_nothing(0.0, settings)
                continue
            with self.ranks.pulse.together("ZeRO forward"):
                value, metrics = self.engine(*filled[number], **settings)
            self._backward(value)
            tokens = len(filled[number][0].token_ids)
            parts.append({**metrics, "loss_sum": value.detach(), "packed_tokens_count": tokens})
            parts[-1].pop("loss_count", None)
        if self.ranks.sequence_place:
            del parts[1:]  # the figures of a share count once
        sums = {**self.ranks.reduce(merge(to_floats(parts))), "loss_count": 1.0}
        try:
            if check is not None:
                check(sums)
            if not math.isfinite(sums["loss_sum"]):
                require_good(sums, math.nan, num_steps=self.num_steps, version=self.policy.version)
        except BaseException:
            # DeepSpeed drops what has been summed up, and updates nothing, where a gradient is not finite
            self._backward_nothing(math.inf, settings)
            self._step()
            raise
        grad_norm = self._update(lr, sums)
        return {**sums, "grad_norm_sum": grad_norm, "grad_norm_count": 1.0}

    def release(self) -> int:
        """Nothing: `checks` refuses offload_while_generating, distributed.offload_optimizer is DeepSpeed's own."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """What `Trainer.state_dict` gives, on rank 0; gathered parameter by parameter, the other ranks keep nothing."""
        self.held.link()
        masters = [self._full(self.held.master(p)) for p in self.parameters]
        moments: dict[int, dict[str, Any]] = {}
        if self.num_steps:
            for index, place in enumerate(self._order()):
                parameter = self.parameters[place]
                state = {key: self._full(self.held.moment(parameter, key)) for key in MOMENTS}
                # a tensor for each: AdamW takes it as it is and counts up in it
                moments[index] = {"step": torch.tensor(float(self.num_steps)), **state}
        return {
            "names": list(self.names),
            "masters": masters,
            "optimizer": {"state": moments, "param_groups": plain_groups(self._group_shapes, self.config)},
            "num_steps": self.num_steps,
            "version": self.policy.version,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the `state_dict()` of this or of `Trainer`, of the same model, on any number of ranks.

        Raises ValueError for another model's, ConfigError with offload to nvme.
        """
        if state["names"] != self.names:
            different = sorted(set(state["names"]) ^ set(self.names))[:4]
            raise ValueError(f"the saved state is of another model, parameters differ: {different}...")
        if self._on_disk:
            raise ConfigError(
                "a state cannot be loaded into masters, moments or parameters on 'nvme': DeepSpeed makes them there "
                "when it first updates; continue with distributed.offload_optimizer (offload_parameters) = 'cpu'"
            )
        check_form(self.config.name, state["optimizer"])
        device = self.policy.device
        self.held.link()
        for parameter, shape, saved in zip(self.parameters, self._shapes, state["masters"], strict=True):
            if shape != saved.shape:
                raise ValueError(f"the saved state has {list(saved.shape)} where the model has {list(shape)}")
            self.held.set_master(parameter, saved.to(device))
            self._set_rounded(parameter, saved.to(device))
        saved_moments = state["optimizer"]["state"]
        for index, place in enumerate(self._order()):
            if index in saved_moments:
                for key in MOMENTS:
                    self.held.set_moment(self.parameters[place], key, saved_moments[index][key].to(device))
        self.held.set_steps(state["num_steps"])
        self.num_steps, self.policy.version = state["num_steps"], state["version"]
        self._gather()

    def _num_rounds(self, own: int) -> int:
        return max(1, *self.ranks.gather_objects(own))  # ZeRO 1 to 3 cannot step without a backward

    def _backward(self, value: Tensor) -> None:
        # DeepSpeed averages over the ranks; the denominator is global, so their gradients are to be summed
        with self.ranks.pulse.together("ZeRO backward"):
            self.engine.backward(value * self.ranks.world_size, scale_wrt_gas=False)

    def _step(self) -> None:
        with self.ranks.pulse.together("ZeRO step"):
            self.engine.step()
        self.held.drop_sums()

    def _backward_nothing(self, factor: float, settings: dict[str, Any]) -> None:
        """Take part in a round without a micro-batch: the gradient of one token times `factor`."""
        with self.ranks.pulse.together("ZeRO forward"):
            value, _ = self.engine(one_token(), None, None, **{**settings, "options": PLAIN})
        self._backward(value * factor)

    def _update(self, lr: float, sums: dict[str, float]) -> float:
        wrapped = self.engine.optimizer
        max_grad_norm = at(self.config.max_grad_norm, self.num_steps)
        self._clip.max_norm = wrapped.clip_grad = max_grad_norm
        weight_decay = at(self.config.weight_decay, self.num_steps)
        shapes = iter(self._group_shapes)
        for group in wrapped.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if len(next(shapes)[0]) >= 2 else 0.0
        self._step()
        grad_norm = self._clip.norm if self._whole else float(self.engine.get_global_grad_norm())
        require_good(sums, grad_norm, num_steps=self.num_steps, version=self.policy.version)
        self.num_steps += 1
        self.policy.version += 1
        self._gather()
        return grad_norm

    @torch.no_grad()
    def _gather(self) -> None:
        """Copy ZeRO 3's parameters into the policy, one at a time."""
        if not self._copies:
            return
        for name, parameter in zip(self.names, self.parameters, strict=True):
            self.ranks.pulse.beat("parameter gathered")
            with self.deepspeed.zero.GatheredParameters([parameter]):
                self._own[name].copy_(parameter)

    def _set_rounded(self, parameter: Tensor, value: Tensor) -> None:
        if not self._sharded:
            parameter.copy_(value)
            return
        if self.policy.shards is not None:
            self.policy.shards.set(parameter, value)
            return
        with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if self.ranks.rank == 0:
                parameter.copy_(value)

    def _full(self, tensor: Tensor) -> Tensor:
        self.ranks.pulse.beat("parameter gathered")
        return tensor.cpu() if self.ranks.rank == 0 else torch.empty(0)

    def _order(self) -> list[int]:
        """Places of the parameters in the order in which `Trainer`'s optimizer numbers them."""
        matrices = [place for place, shape in enumerate(self._shapes) if len(shape) >= 2]
        return matrices + [place for place, shape in enumerate(self._shapes) if len(shape) < 2]


class _Clip:
    """Hook of ZeRO 0, whose step neither clips by a schedule, nor tells the norm, nor looks for what is not finite."""

    def __init__(self, parameters: list[Any]) -> None:
        self.parameters, self.max_norm, self.norm = parameters, 0.0, 0.0

    @torch.no_grad()
    def __call__(self, *_: Any) -> None:
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        self.norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(self.norm):
            for parameter in self.parameters:
                parameter.grad = None  # AdamW leaves such a parameter as it is
        elif 0 < self.max_norm < self.norm:
            torch._foreach_mul_(gradients, self.max_norm / self.norm)


PLAIN = PolicyLoss(objective="nll", kl="none", kl_coef=0.0, aggregate="token_mean")
