"""The policy that KL is measured against: a frozen copy, or, of one with adapters, earlier adapters on its weights."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from r1fast.adapters import adapter_parameters, other_adapters, without_adapters
from r1fast.config import Config
from r1fast.idle import Idle
from r1fast.policy import Policy
from r1fast.records import Batch
from r1fast.sharded import Shards
from r1fast.trainer import Logprobs, score


class CopiedReference:
    """All weights once more. `idles`: on a GPU they are in the host's memory but while they score."""

    def __init__(self, policy: Policy, *, idles: bool = False) -> None:
        self.policy = policy.copy()
        self._idle = Idle(self.policy.module, policy.device) if idles else None

    @property
    def version(self) -> int:
        """Of the policy that it is a copy of."""
        return self.policy.version

    def score(
        self,
        batches: list[Batch],
        *,
        temperature: float,
        logprobs: Logprobs | None = None,
        beat: Callable[[str], object] = len,
    ) -> list[Tensor]:
        """As `trainer.score`."""
        with self._idle.awake() if self._idle else nullcontext():
            return score(self.policy, batches, temperature=temperature, logprobs=logprobs, beat=beat)

    def refresh(self, policy: Policy) -> None:
        """Become what `policy` is now."""
        self.policy.copy_weights_(policy)

    def state_dict(self) -> dict[str, Any]:
        """Weights and version; the tensors are the live ones."""
        return {"weights": self.policy.module.state_dict(), "version": self.policy.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what was saved."""
        self.policy.module.load_state_dict(state["weights"])
        self.policy.version = state["version"]


class ShardedReference:
    """All weights once more, shared out by ZeRO 3 as the policy's are; every method is collective."""

    def __init__(self, policy: Policy, shards: Shards) -> None:
        """`policy`: one of its own, which `shards` holds."""
        policy.module.requires_grad_(False)
        self.policy, self._shards = policy, shards

    @property
    def version(self) -> int:
        """Of the policy that it is a copy of."""
        return self.policy.version

    def score(
        self,
        batches: list[Batch],
        *,
        temperature: float,
        logprobs: Logprobs | None = None,
        beat: Callable[[str], object] = len,
    ) -> list[Tensor]:
        """As `trainer.score`."""
        return self._shards.score(batches, temperature=temperature, logprobs=logprobs, beat=beat)

    def refresh(self, policy: Policy) -> None:
        """Become what `policy` is now."""
        assert policy.shards is not None, "its policy's weights are shared out, too"
        self._shards.copy_(policy.shards)
        self.policy.version = policy.version

    def state_dict(self) -> dict[str, Any]:
        """Weights, in the host's memory of rank 0 alone, and version."""
        return {"weights": self._shards.state_dict(), "version": self.policy.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what was saved, also by a `CopiedReference`."""
        self._shards.load_state_dict(state["weights"])
        self.policy.version = state["version"]


class AdapterReference:
    """The weights of a policy with adapters, without them, or after a refresh with a copy of what they were."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.version = policy, policy.version
        self.adapters: dict[str, Tensor] = {}  # none: off

    def score(
        self,
        batches: list[Batch],
        *,
        temperature: float,
        logprobs: Logprobs | None = None,
        beat: Callable[[str], object] = len,
    ) -> list[Tensor]:
        """As `trainer.score`."""
        with self._in_place():
            return score(self.policy, batches, temperature=temperature, logprobs=logprobs, beat=beat)

    def refresh(self, policy: Policy) -> None:
        """Become what `policy`, the one that this was made of, is now."""
        assert policy is self.policy
        self.adapters = {name: x.detach().clone() for name, x in adapter_parameters(policy.module).items()}
        self.version = policy.version

    def state_dict(self) -> dict[str, Any]:
        """Adapters and version."""
        return {"adapters": self.adapters, "version": self.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what was saved."""
        own = adapter_parameters(self.policy.module)
        self.adapters = {name: x.to(own[name].device, own[name].dtype) for name, x in state["adapters"].items()}
        self.version = state["version"]

    def _in_place(self) -> AbstractContextManager[None]:
        module = self.policy.module
        return other_adapters(module, self.adapters) if self.adapters else without_adapters(module)


Reference = CopiedReference | ShardedReference | AdapterReference


def make_reference(policy: Policy, config: Config, load: Callable[[], Policy]) -> Reference | None:
    """The reference that a stage's configuration asks for: None without a KL term. Make it before the trainer.

    `load`: the policy as it is now once more, for one that is shared out and cannot be copied.
    """
    if config.loss.kl == "none":
        return None
    if config.lora.rank:
        return AdapterReference(policy)
    if policy.shards is not None:
        own = load()
        assert own.shards is not None, "loaded as the policy was"
        return ShardedReference(own, own.shards)
    return CopiedReference(policy, idles=config.optimizer.offload_idle_models)
