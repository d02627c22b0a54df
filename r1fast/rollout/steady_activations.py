"""Activations on a CPU whose results do not depend on where a number lies among the others.

PyTorch gives each thread a share of a tensor's numbers; those at a share's end that fill no vector go through scalar
code, where exp and its like differ in the last bit. From 3 threads on a row's numbers would depend on its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2CLS

from r1fast.rollout.fused_layers import restore_forwards

GRAIN = 32768  # numbers of a thread's share at least: at::internal::GRAIN_SIZE
GELU_ALONE = 16384  # numbers that gelu leaves to one thread; more of them it gives to all
VECTOR = 64  # numbers that scalar code never sees a part of: two vectors of 32 bf16 each

_KINDS: list[Any] = [kind[0] if isinstance(kind, tuple) else kind for kind in ACT2CLS.values()]
_ACTIVATIONS: tuple[type, ...] = tuple(set(_KINDS))


@contextmanager
def steady_activations(module: nn.Module) -> Iterator[None]:
    """Within, the activation modules of a model on a CPU give each number the same result in every batch.

    For tensors of a multiple of 64 numbers; a model that calls torch's functions by itself is left as it is.
    """
    changed: list[tuple[dict[str, Any], Any]] = []
    try:
        for layer in module.modules():
            if isinstance(layer, _ACTIVATIONS) and not any(True for _ in layer.parameters()):
                own: dict[str, Any] = layer.__dict__
                changed.append((own, own.get("forward")))
                own["forward"] = _steady(layer.forward)
        yield
    finally:
        restore_forwards(changed)


def _steady(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return function(x)
        x = x.contiguous()  # else every row has an end that fills no vector, or has none, by the shape
        num_threads, size = torch.get_num_threads(), x.numel()
        shares = (min(num_threads, -(-size // GRAIN)), num_threads)
        if size <= GELU_ALONE or all(size % (VECTOR * count) == 0 for count in shares):
            return function(x)
        flat = x.view(-1)
        # equal shares of whole vectors, the rest one share at a time
        shared = size - size % (VECTOR * num_threads) if size >= GRAIN * num_threads else 0
        parts = [*([flat[:shared]] if shared else []), *torch.split(flat[shared:], GELU_ALONE)]
        return torch.cat([function(part) for part in parts if len(part)]).view(x.shape)

    return forward
