"""How a policy's layers run in the rollout, and in what must equal it bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from torch import nn

from r1fast.rollout.fused_layers import fused_layers
from r1fast.rollout.steady_activations import steady_activations


@contextmanager
def cpu_layers(module: nn.Module) -> Iterator[None]:
    """Within, a causal LM's layers on a CPU are fused and packed where they can be, and no row depends on others.

    Weights must not change meanwhile, and nothing is differentiable. Elsewhere than on a CPU nothing happens.
    """
    with fused_layers(cast(nn.Module, module.base_model)), steady_activations(module):
        yield
