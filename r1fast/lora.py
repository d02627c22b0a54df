"""Adapters on a policy, made by peft: which layers get them, how they start, and what a stage leaves of them."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from r1fast.adapters import ADAPTER, adapted_layers, adapter_parameters
from r1fast.context import RunContext
from r1fast.lora_config import ALL_LINEAR, LoraConfig
from r1fast.policy import Policy

PEFT_PREFIX = "base_model.model."  # of the names in adapter_model.safetensors


def add_adapters(policy: Policy, lora: LoraConfig, key: str) -> None:
    """Put adapters on `policy.module`, in its dtype, and freeze everything else; with rank 0 nothing happens.

    B starts at 0, so the policy stays the function that it is; A is drawn as `key` says, alike on every device. Raises
    ValueError for targets that the model does not have, or that are no linear layers.
    """
    if not lora.rank:
        return
    from peft import inject_adapter_in_model

    module = policy.module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big"))
        inject_adapter_in_model(_peft_config(lora), module, ADAPTER)
    layers = adapted_layers(module)
    for target in lora.targets:
        if target != ALL_LINEAR and not any(name == target or name.endswith(f".{target}") for name in layers):
            raise ValueError(
                f"lora.targets names {target!r}, and {type(module).__name__} has no such layer; its linear layers are "
                f"{', '.join(linear_names(module))}"
            )
    odd = sorted({type(layer.base_layer).__name__ for layer in layers.values()} - {"Linear"})
    if odd:
        raise ValueError(f"lora.targets: adapters on {', '.join(odd)} layers are not supported, on nn.Linear they are")
    for parameter in adapter_parameters(module).values():
        parameter.data = parameter.data.to(policy.dtype)  # peft keeps them in float32: the trainer has masters


def linear_names(module: nn.Module) -> list[str]:
    """The last parts of the names of a module's linear layers, with adapters or without, as `lora.targets` has them."""
    names = {name.split(".")[-1] for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    return sorted((names | {name.split(".")[-1] for name in adapted_layers(module)}) - {ADAPTER, "base_layer"})


def save_trained(context: RunContext, stage: str, policy: Policy, lora: LoraConfig) -> None:
    """Write a stage's `checkpoint/`, adapters merged, and beside it `adapter/` as peft's `from_pretrained` reads it."""
    if lora.rank:
        context.save_model(stage, "adapter", lambda: partial(save_adapter, policy, lora))
    context.save_model(stage, "checkpoint", policy.saver)


def save_adapter(policy: Policy, lora: LoraConfig, directory: Path) -> None:
    """A and B of every layer as `adapter_model.safetensors`, with their `adapter_config.json`."""
    tensors = {
        PEFT_PREFIX + name.replace(f".{ADAPTER}.", "."): parameter.detach().cpu().contiguous()
        for name, parameter in adapter_parameters(policy.module).items()
    }
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = _peft_config(lora)
    config.inference_mode = True
    config.save_pretrained(str(directory))


def _peft_config(lora: LoraConfig) -> Any:
    from peft import LoraConfig as PeftConfig

    names: Any = ALL_LINEAR if lora.targets == (ALL_LINEAR,) else list(lora.targets)
    return PeftConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        use_rslora=lora.rank_stabilised,
        lora_dropout=lora.dropout,
        target_modules=names,
        bias="none",
    )
