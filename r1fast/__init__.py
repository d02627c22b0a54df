"""r1fast: train a reasoning model the way DeepSeek-R1 was trained.

The stable API is `__all__`; its names load on first use, so that `import r1fast` costs nothing and has no side effects.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from r1fast.config import Config
    from r1fast.metrics import read_metrics
    from r1fast.records import Prompt, Rollout, ScoredRollout

__version__ = "0.1.0"

__all__ = ["Config", "Prompt", "Rollout", "ScoredRollout", "__version__", "read_metrics"]

# name -> the module that has it
_HOMES = {
    "Config": "r1fast.config",
    "Prompt": "r1fast.records",
    "Rollout": "r1fast.records",
    "ScoredRollout": "r1fast.records",
    "read_metrics": "r1fast.metrics",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'r1fast' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
