"""Layers of a module that carry peft's LoRA, read without peft: y = W x + scale B A x, W as it was."""

# O features out, I features in, r rank

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

ADAPTER = "default"  # peft's name of the one that a layer has


def adapted_layers(module: nn.Module) -> dict[str, Any]:
    """The layers with adapters by name; empty for a module without."""
    return {name: layer for name, layer in module.named_modules() if is_adapted(layer)}


def is_adapted(layer: nn.Module) -> bool:
    """Whether a layer is a linear one with an adapter of ours on it."""
    return hasattr(layer, "base_layer") and ADAPTER in getattr(layer, "lora_A", {})


def low_rank(layer: Any) -> tuple[Tensor, Tensor, float]:
    """A [r, I], B [O, r] and their scale, of an adapted layer."""
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, float(layer.scaling[ADAPTER])


def adapter_parameters(module: nn.Module) -> dict[str, Tensor]:
    """A and B of every adapted layer by their names in the module."""
    found = {}
    for name, layer in adapted_layers(module).items():
        for part in ("lora_A", "lora_B"):
            found[f"{name}.{part}.{ADAPTER}.weight"] = cast(Tensor, getattr(layer, part)[ADAPTER].weight)
    return found


@torch.no_grad()
def merged_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state of the module without adapters whose outputs are this one's: W + scale B A where there was an adapter.

    The sum is formed in float32 and rounded once, to the dtype of W. Nothing of the module changes.
    """
    state = module.state_dict()
    for name, layer in adapted_layers(module).items():
        down, up, scale = low_rank(layer)
        for key in [key for key in state if key.startswith(f"{name}.")]:
            value = state.pop(key)
            plain, _, rest = key.removeprefix(f"{name}.").partition(".")
            if plain == "base_layer":
                state[f"{name}.{rest}"] = value
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
    return state


@contextmanager
def without_adapters(module: nn.Module) -> Iterator[None]:
    """Within, the module is what it was before it got adapters."""
    layers = list(adapted_layers(module).values())
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def other_adapters(module: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    """Within, the module has these values for its adapters, by the names of `adapter_parameters`; nothing is copied.

    Its own parameters are put aside untouched: in float32 they are the trainer's masters, which another thread may be
    saving.
    """
    kept = adapter_parameters(module)
    try:
        for name in kept:
            _put(module, name, nn.Parameter(values[name], requires_grad=False))
        yield
    finally:
        for name, parameter in kept.items():
            _put(module, name, parameter)


def _put(module: nn.Module, name: str, parameter: Tensor) -> None:
    owner, _, own = name.rpartition(".")
    setattr(module.get_submodule(owner), own, parameter)
