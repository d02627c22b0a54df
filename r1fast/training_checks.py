"""What must hold between [optimizer], [lora] and the rest; `checks.py` has the other sections."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import replace
from importlib.util import find_spec
from itertools import product

from r1fast.apex import STATES, apex_state, remedy
from r1fast.config import RL_STAGES, STAGES, Config, ConfigError
from r1fast.lora_config import LoraConfig

GPU_OPTIMIZERS = ("deepspeed_fused", "apex")
HEADS = ("lm_head", "embed_tokens", "embed_out", "wte")  # read as they are, by the loss and by the rollout
ADAPTED = tuple(stage for stage, section in STAGES.items() if section in ("rl", "sft"))
REWARD_MODELS = "reward_models"
TRAINED = (*ADAPTED, REWARD_MODELS)
# Section -> options that the reward models' training makes no use of: those of a recipe are for its policies.
OF_POLICIES = {
    "optimizer": ("weight_decay", "offload_while_generating", "offload_idle_models"),
    "distributed": ("offload_optimizer", "offload_parameters", "sequence_parallel"),
}


def check_training(config: Config, stage: str) -> None:
    """Refuse an optimizer or adapters that a stage cannot have; ConfigError with value, constraint and fix."""
    if stage in TRAINED:
        _check_optimizer(config)
    if stage in ADAPTED:
        _check_adapters(config, stage)
    elif "lora" in config.stages.get(stage, {}):
        raise ConfigError(f"stages.{stage}.lora: this stage trains no adapters, {', '.join(ADAPTED)} do; leave it out")
    if stage == REWARD_MODELS:
        _check_reward_models(config)


def check_offload(config: Config, stages: Collection[str], device: str) -> None:
    """Moving to the host's memory what is there already would be for nothing. Raises ConfigError."""
    for stage, name in product(stages, ("offload_activations", "offload_while_generating", "offload_idle_models")):
        if device != "cuda" and getattr(config.for_stage(stage).optimizer, name):
            raise ConfigError(
                f"optimizer.{name} = true in stage {stage} frees a GPU's memory, and the run is on {device}; set "
                "it to false, or run.device to cuda"
            )


def check_targets(lora: LoraConfig, stage: str, model: str, layers: Collection[str]) -> None:
    """ConfigError where adapters of a stage are to be on layers that the model does not have.

    `layers`: full names of its linear layers; nothing is known where there are none.
    """
    if not lora.rank or stage not in ADAPTED or not layers:
        return
    for target in lora.targets:
        if not any(replace(lora, targets=(target,)).adapts(name) for name in layers):
            names = ", ".join(sorted({name.split(".")[-1] for name in layers}))
            raise ConfigError(
                f"lora.targets names {target!r}, and model {model!r} has no such layer; its linear layers are {names}"
            )


def check_training_device(config: Config, stage: str, device: str) -> None:
    """Refuse an optimizer that does not run on this type of device; ConfigError with value, constraint and fix."""
    name, distributed = config.optimizer.name, config.distributed
    if stage not in TRAINED:
        return
    if name in GPU_OPTIMIZERS and device != "cuda":
        raise ConfigError(
            f"optimizer.name = {name!r} runs on a GPU only, and this run is on {device}: use 'adamw', or "
            "'deepspeed_cpu' on the CPU"
        )
    if name == "deepspeed_cpu" and device != "cpu" and stage == REWARD_MODELS:
        raise ConfigError(
            f"optimizer.name = 'deepspeed_cpu' updates weights in the host's memory, and the reward models' are on "
            f'{device}, with distributed.offload_optimizer, too: set stages.{stage}.optimizer.name = "adamw"'
        )
    on_host = distributed.engine == "deepspeed" and distributed.offload_optimizer != "none"
    if name == "deepspeed_cpu" and device != "cpu" and not on_host:
        raise ConfigError(
            f"optimizer.name = 'deepspeed_cpu' updates masters in the host's memory, and this run has them on "
            f"{device}: set distributed.engine = 'deepspeed' and distributed.offload_optimizer = 'cpu', or use 'adamw'"
        )


def _check_optimizer(config: Config) -> None:
    name, distributed = config.optimizer.name, config.distributed
    if name.startswith("deepspeed") and not find_spec("deepspeed"):
        raise ConfigError(f"optimizer.name = {name!r} needs deepspeed: pip install deepspeed, or use 'adamw'")
    if name == "deepspeed_cpu" and not shutil.which("g++"):
        raise ConfigError("optimizer.name = 'deepspeed_cpu' compiles an op with g++, which is missing: install it")
    if name == "apex" and (state := apex_state()) != "whole":
        raise ConfigError(f"optimizer.name = 'apex': {STATES[state]}; {remedy(state)}, or use 'adamw'")
    if name == "adamw_8bit" and not find_spec("bitsandbytes"):
        raise ConfigError(
            "optimizer.name = 'adamw_8bit' needs bitsandbytes: pip install 'r1fast[adam8bit]', or use 'adamw'"
        )
    if distributed.engine != "deepspeed":
        return
    if name == "adamw_8bit":
        raise ConfigError(
            "optimizer.name = 'adamw_8bit' with distributed.engine = 'deepspeed': ZeRO shares out float32 moments, and "
            "its 8-bit blocks would be cut apart; use 'adamw', or engine = 'torch'"
        )
    if name in GPU_OPTIMIZERS and distributed.offload_optimizer != "none":
        raise ConfigError(
            f"optimizer.name = {name!r} runs on a GPU, and distributed.offload_optimizer = "
            f"{distributed.offload_optimizer!r} takes its masters away from it: use 'deepspeed_cpu'"
        )


def _check_reward_models(config: Config) -> None:
    own = config.stages.get(REWARD_MODELS, {})
    for section, names in OF_POLICIES.items():
        given = own.get(section, {})
        for name in names:
            default = getattr(getattr(Config(), section), name)
            if given.get(name, default) != default:
                raise ConfigError(
                    f"stages.{REWARD_MODELS}.{section}.{name} = {given[name]!r}: reward models are trained without it; "
                    f"leave it out, or give it for policies, as {section}.{name}"
                )


def _check_adapters(config: Config, stage: str) -> None:
    lora, defaults = config.lora, LoraConfig()
    if not lora.rank:
        given = [name for name, value in vars(lora).items() if value != getattr(defaults, name)]
        if given:
            raise ConfigError(f"lora.{given[0]} is set and lora.rank = 0 trains no adapters: give a rank, such as 16")
        return
    if not find_spec("peft"):
        raise ConfigError(f"lora.rank = {lora.rank} needs peft: pip install 'r1fast[lora]', or set lora.rank = 0")
    if lora.dropout:
        raise ConfigError(
            f"lora.dropout = {lora.dropout:g} would train another policy than the one that the completions come from: "
            "set it to 0; loss.kl and lora.rank regularise, too"
        )
    for name in lora.targets:
        if name in HEADS:
            raise ConfigError(
                f"lora.targets names {name!r}: the loss and the rollout read embeddings and head as they are; name "
                "layers between them, such as q_proj, or all-linear"
            )
    if not lora.targets or ("all-linear" in lora.targets and len(lora.targets) > 1):
        raise ConfigError(f"lora.targets = {list(lora.targets)}: name layers, or all-linear alone")
    if stage in RL_STAGES and config.rollout.backend == "vllm":
        raise ConfigError(
            f"stages.{stage}: lora.rank = {lora.rank} with rollout.backend = 'vllm', whose weights would have to be "
            "merged ones, which round differently; use 'paged', or lora.rank = 0"
        )
    if config.distributed.engine == "deepspeed" and config.distributed.zero_stage == 3:
        raise ConfigError(
            f"lora.rank = {lora.rank} with distributed.zero_stage = 3, which shares out trained parameters: those of "
            "adapters are few, and the weights stay whole for the rollout in any case; use zero_stage = 1 or 2"
        )
