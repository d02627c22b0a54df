"""The policy that KL is measured against: a frozen copy, or, of one with adapters, earlier adapters on its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from r1fast.adapters import adapter_parameters, other_adapters, without_adapters
from r1fast.config import Config
from r1fast.idle import Idle
from r1fast.policy import Policy
from r1fast.records import Batch
from r1fast.trainer import Logprobs, score


class _Reference(ABC):
    """`policy` scores, within `_in_place`."""

    policy: Policy

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

    @abstractmethod
    def _in_place(self) -> AbstractContextManager[None]: ...


class CopiedReference(_Reference):
    """All weights once more; shared out by ZeRO 3, so that every method is collective, where the policy's are.

    `copy`: a policy of its own. `idles`: on a GPU whole weights are in the host's memory but while they score.
    """

    def __init__(self, copy: Policy, *, idles: bool = False) -> None:
        self.policy = copy
        copy.module.requires_grad_(False)
        self._weights = copy.shards or copy.module
        self._idle = Idle(copy.module, copy.device) if idles and copy.shards is None else None

    @property
    def version(self) -> int:
        """Of the policy that it is a copy of."""
        return self.policy.version

    def refresh(self, policy: Policy) -> None:
        """Become what `policy` is now."""
        self.policy.copy_weights_(policy)

    def state_dict(self) -> dict[str, Any]:
        """Weights and version; whole tensors are the live ones, of shared ones rank 0 alone has copies."""
        return {"weights": self._weights.state_dict(), "version": self.policy.version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become what was saved, whole or shared out."""
        self._weights.load_state_dict(state["weights"])
        self.policy.version = state["version"]

    def _in_place(self) -> AbstractContextManager[None]:
        return self._idle.awake() if self._idle else nullcontext()


class AdapterReference(_Reference):
    """The weights of a policy with adapters, without them, or after a refresh with a copy of what they were."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.version = policy, policy.version
        self.adapters: dict[str, Tensor] = {}  # none: off

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


Reference = CopiedReference | AdapterReference


def make_reference(policy: Policy, config: Config, load: Callable[[], Policy]) -> Reference | None:
    """The reference that a stage's configuration asks for: None without a KL term. Make it before the trainer.

    `load`: the policy as it is now once more, for one that is shared out and cannot be copied.
    """
    if config.loss.kl == "none":
        return None
    if config.lora.rank:
        return AdapterReference(policy)
    copy = policy.copy() if policy.shards is None else load()
    return CopiedReference(copy, idles=config.optimizer.offload_idle_models)
