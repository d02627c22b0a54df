"""A policy that no process holds whole: ZeRO 3 shares its parameters out and gathers a layer's while it computes.

For weights that are more than a device holds. `Shards.load` reads them into the memory of rank 0's host and hands them
out one by one; training, scoring, saving and pushes to a rollout engine gather what they need, one layer or parameter
at a time. Nothing but vLLM, which shares weights out in its own way, samples from such a policy.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore

from r1fast.activations import enable_checkpointing
from r1fast.attention import register_attention
from r1fast.distributed import Ranks
from r1fast.distributed_config import DistributedConfig
from r1fast.optimizers import import_deepspeed
from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.records import Batch, Sequence
from r1fast.trainer import Logprobs, micro_batch_loss, score_batch
from r1fast.user_input import ConfigError
from r1fast.whole import whole_shape
from r1fast.zero_config import deepspeed_options


class Shards:
    """ZeRO 3's hold on the parameters of one policy, as its `shards`. Every method is collective, over all processes.

    `engine`: DeepSpeed's, in whose forward the module computes; a trainer sets its own, else the first score makes one.
    """

    def __init__(self, policy: Policy, distributed: DistributedConfig, ranks: Ranks) -> None:
        """Shares out what `policy.module` holds on rank 0, on the host or on the device; the rest of it is freed."""
        self.deepspeed = import_deepspeed("distributed.engine = 'deepspeed'")
        join_alone(ranks)
        self.ranks, self.engine = ranks, None
        self.num_sets = 0  # of parameters, by other than the optimizer
        self._policy = policy
        self._options = deepspeed_options(distributed, str(policy.dtype).removeprefix("torch."))
        self.deepspeed.init_distributed(verbose=False)
        with ranks.pulse.together("weights handed out"):
            self.deepspeed.zero.Init(module=policy.module, config_dict_or_path=self._options)
        policy.module.to(policy.device)  # type: ignore[arg-type]  # buffers; parameters are where they are
        policy.shards = self

    @staticmethod
    def load(load: Callable[[], Policy], device: torch.device, distributed: DistributedConfig, ranks: Ranks) -> Policy:
        """The policy that `load`, called on rank 0 alone, reads into the host's memory; every rank raises its error."""
        policy: Policy | None = None
        failure: Exception | None = None
        if ranks.rank == 0:
            try:
                policy = load()
            except Exception as error:
                failure = _sendable(error)
        _raise_first(ranks.gather_objects(failure))
        described = ranks.broadcast_object(None if policy is None else _Described.of(policy))
        assert described is not None
        if policy is None:
            try:
                policy = described.without_weights()
            except Exception as error:
                failure = _sendable(error)
        _raise_first(ranks.gather_objects(failure))
        assert policy is not None
        policy.device = device
        Shards(policy, distributed, ranks)
        return policy

    def score(
        self,
        batches: list[Batch],
        *,
        temperature: float,
        logprobs: Logprobs | None = None,
        beat: Callable[[str], object] = len,
    ) -> list[Tensor]:
        """As `trainer.score`; ranks may have different numbers of batches."""
        engine = self.engine = self.engine or self._scoring_engine()
        filled = [batch for batch in batches if len(batch.targets)]
        scores = []
        for number in range(max(self.ranks.gather_objects(len(filled)))):
            beat("micro-batch to score")
            is_own = number < len(filled)
            with self.ranks.pulse.together("ZeRO forward"):
                found = engine(
                    filled[number] if is_own else one_token(),
                    temperature=temperature,
                    logprobs=logprobs if is_own else None,
                )
            scores += [found] * is_own
        # a forward alone gathers ahead for a backward that never comes; and what it leaves is memory
        engine.optimizer.empty_partition_cache()
        came = iter(scores)
        empty = torch.zeros(0, device=self._policy.device)
        return [next(came) if len(batch.targets) else empty for batch in batches]

    @torch.no_grad()
    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter whole, with its name; it is to be read, not written. Use the iterator up."""
        for name, parameter in self._policy.module.named_parameters():
            self.ranks.pulse.beat("parameter gathered")
            with self.deepspeed.zero.GatheredParameters([parameter]):
                whole = parameter.data
            yield name, whole

    def state_dict(self) -> dict[str, Tensor]:
        """As the module's, in the host's memory, on rank 0; empty on the others."""
        values = {}
        for name, value in self.parameters():
            if self.ranks.rank == 0:
                values[name] = value.to("cpu", copy=True)
        if self.ranks.rank:
            return {}
        whole = {name: values[first] for first, names in self.names().items() for name in names}
        buffers = {name: value.cpu() for name, value in self._policy.module.state_dict().items() if name not in whole}
        return {**whole, **buffers}

    def names(self) -> dict[str, list[str]]:
        """Of every parameter: the name that `parameters` gives it, and all that it has."""
        module = self._policy.module
        first = {id(parameter): name for name, parameter in module.named_parameters()}
        found: dict[str, list[str]] = {name: [] for name in first.values()}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            found[first[id(parameter)]].append(name)
        return found

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Become what `state` says, which every rank has."""
        module = self._policy.module
        missing = sorted(name for name, _ in module.named_parameters() if name not in state)
        if missing:
            raise ValueError(f"the saved weights are of another model, it has no {missing[:3]}")
        for name, parameter in module.named_parameters():
            self.set(parameter, state[name])

    @torch.no_grad()
    def set(self, parameter: Tensor, value: Tensor) -> None:
        """Set a parameter to rank 0's `value`."""
        with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if self.ranks.rank == 0:
                parameter.copy_(value)
        self.num_sets += 1

    @torch.no_grad()
    def copy_(self, source: Shards) -> None:
        """Become what another policy of the same model is, which the same processes share."""
        own = dict(self._policy.module.named_parameters())
        for name, value in source.parameters():
            self.set(own[name], value)

    def _scoring_engine(self) -> Any:
        engine, *_ = self.deepspeed.initialize(
            model=ZeroForward(self._policy, None), config=self._options, dist_init_required=None
        )
        track(engine)
        return engine


_engines: weakref.WeakSet[Any] = weakref.WeakSet()


def track(engine: Any) -> None:
    """`end_engines` is to end it."""
    _engines.add(engine)


class ZeroForward(nn.Module):
    """A policy with its loss and its scores as one module: ZeRO 3 gathers the head only inside a module's forward."""

    def __init__(self, policy: Policy, logprobs: Logprobs | None) -> None:
        super().__init__()
        self.model = policy.module
        self._policy, self._logprobs = policy, logprobs

    def forward(
        self,
        batch: Batch,
        old: Tensor | None = None,
        ref: Tensor | None = None,
        *,
        temperature: float,
        logprobs: Logprobs | None = None,
        **settings: Any,
    ) -> Any:
        """As `micro_batch_loss`; without its `options` as `score_batch`."""
        if "options" not in settings:
            with torch.no_grad():
                return score_batch(self._policy, batch, temperature=temperature, logprobs=logprobs)
        return micro_batch_loss(
            self._policy, batch, old, ref, temperature=temperature, logprobs=self._logprobs, **settings
        )


@dataclass(frozen=True)
class _Described:
    """All of a policy but its parameters: what rank 0 tells the others. Pickled."""

    policy: Policy  # without its module
    kind: type
    config: Any
    generation_config: Any
    conversions: Any
    buffers: dict[str, Tensor]
    parameters: list[tuple[str, torch.Size, torch.dtype]]

    @staticmethod
    def of(policy: Policy) -> _Described:
        module: Any = policy.module
        bare = Policy(**{**vars(policy), "module": None})
        return _Described(
            policy=bare,
            kind=type(module),
            config=module.config,
            generation_config=module.generation_config,
            conversions=getattr(module, "_weight_conversions", None),
            buffers=dict(module.named_buffers()),
            parameters=_parameters(module),
        )

    def without_weights(self) -> Policy:
        """The policy with parameters of the right shapes, whose memory is not touched."""
        register_attention()
        with torch.device("meta"):
            module: Any = self.kind(self.config)
        wanted = {name: dtype for name, _, dtype in self.parameters}
        for name, parameter in module.named_parameters():
            parameter.data = parameter.data.to(wanted.get(name, parameter.dtype))
        module.to_empty(device="cpu")
        module.tie_weights()
        for name, value in self.buffers.items():
            owner, _, last = name.rpartition(".")
            module.get_submodule(owner)._buffers[last] = value
        module.train(False)
        module.generation_config = self.generation_config
        if self.conversions is not None:
            module._weight_conversions = self.conversions
        if self.policy.gradient_checkpointing:
            enable_checkpointing(module)
        if (own := _parameters(module)) != self.parameters:
            different = [one for one, other in zip(own, self.parameters, strict=False) if one != other]
            raise ValueError(f"{self.kind.__name__} is built with other parameters than it is loaded with: {different}")
        return Policy(**{**vars(self.policy), "module": module})


def end_engines() -> None:
    """End all of DeepSpeed's engines and let go of them: when a stage is over.

    DeepSpeed (0.19) keeps them, with all that they have, otherwise: hooks that Python's collector does not see through,
    and of ZeRO 3 a stack of modules, whose first ones are never taken off, and a cache of a method.
    """
    for engine in list(_engines):
        engine.destroy()
    _engines.clear()
    offload = sys.modules.get("deepspeed.runtime.zero.parameter_offload")
    if offload is None:
        return
    offload.FWD_MODULE_STACK.clear()
    for method in vars(offload.PartitionedParameterCoordinator).values():
        for cell in getattr(method, "__closure__", None) or ():
            if hasattr(cell.cell_contents, "cache_clear"):
                cell.cell_contents.cache_clear()


def _sendable(error: Exception) -> Exception:
    """The error, or where another process could not read it what it says."""
    if isinstance(error, ConfigError) or type(error) in (ValueError, OSError, RuntimeError, MemoryError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _raise_first(failures: list[Exception | None]) -> None:
    for failure in failures:
        if failure is not None:
            raise failure


def _parameters(module: nn.Module) -> list[tuple[str, torch.Size, torch.dtype]]:
    return [(name, whole_shape(p), p.dtype) for name, p in module.named_parameters()]


def join_alone(ranks: Ranks) -> None:
    """DeepSpeed wants a process group even of one, and a launcher's variable."""
    index = ranks.device.index  # of a GPU: "cuda:1" may be the only one of a process alone
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank if index is None else index))
    if ranks.world_size == 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if ranks.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)


def one_token() -> Batch:
    """The smallest micro-batch, for a rank that has to take part in a round without one of its own."""
    sequence = Sequence(token_ids=torch.zeros(2, dtype=torch.int64), num_prompt_tokens=1, advantage=0.0)
    return pack([sequence], micro_batch_tokens=2)[0]
