"""r1fast: train a reasoning model the way DeepSeek-R1 was trained.

The stable API is `__all__`; its names load on first use, so that `import r1fast` costs nothing and has no side effects.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r1fast.config import Config
    from r1fast.kernels.grpo_loss import PolicyLoss
    from r1fast.metrics import read_metrics
    from r1fast.policy import Policy
    from r1fast.records import Prompt, Rollout, ScoredRollout
    from r1fast.rollout.engine import RolloutEngine
    from r1fast.sampling import Sampling
    from r1fast.scorer import Scorer
    from r1fast.train import main
    from r1fast.trainer import Trainer

__version__ = "0.1.0"

__all__ = [
    "Config",
    "Policy",
    "PolicyLoss",
    "Prompt",
    "Rollout",
    "RolloutEngine",
    "Sampling",
    "ScoredRollout",
    "Scorer",
    "Trainer",
    "__version__",
    "main",
    "read_metrics",
]

# name -> the module that has it
_HOMES = {
    "Config": "r1fast.config",
    "Policy": "r1fast.policy",
    "PolicyLoss": "r1fast.kernels.grpo_loss",
    "Prompt": "r1fast.records",
    "Rollout": "r1fast.records",
    "RolloutEngine": "r1fast.rollout.engine",
    "Sampling": "r1fast.sampling",
    "ScoredRollout": "r1fast.records",
    "Scorer": "r1fast.scorer",
    "Trainer": "r1fast.trainer",
    "main": "r1fast.train",
    "read_metrics": "r1fast.metrics",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'r1fast' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
