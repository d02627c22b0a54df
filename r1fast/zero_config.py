"""DeepSpeed's configuration from a recipe, and a file of the user's beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1fast.distributed_config import DistributedConfig
from r1fast.user_input import ConfigError

# What a file of the user may say beside the recipe. Anything else DeepSpeed would pass over in silence (a misspelt
# name; an optimizer or a scheduler, since it is given ours), or it would change the numbers behind the recipe's back.
FURTHER = (
    "aio",
    "comms_logger",
    "communication_data_type",
    "csv_monitor",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "tensorboard",
    "wall_clock_breakdown",
    "wandb",
)

# And below zero_optimization: sizes of buffers and when they are used. Others would reorder what states are read from
# (round_robin_gradients), update a part with another optimizer (ratio), or compute in other numbers.
FURTHER_ZERO = {
    "zero_optimization": (
        *("allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "memory_efficient_linear"),
        *("reduce_bucket_size", "reduce_scatter", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
        *("stage3_module_granularity_threshold", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size"),
        "sub_group_size",
    ),
    "zero_optimization.offload_optimizer": (
        "buffer_count",
        "fast_init",
        "pin_memory",
        "pipeline_read",
        "pipeline_write",
    ),
    "zero_optimization.offload_param": ("buffer_count", "buffer_size", "max_in_cpu", "pin_memory"),
}


def deepspeed_options(config: DistributedConfig, dtype: str) -> dict[str, Any]:
    """What `deepspeed.initialize` takes, the user's file included; `dtype`: float32 or bfloat16.

    The step divides by a denominator over all processes, so gradients are neither divided by micro-batches
    (`managed_gradient_accumulation`) nor clipped at DeepSpeed's default of 1. Raises ConfigError for a file that is
    none, or says what the recipe says.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": False}
    for key, place in (("offload_optimizer", config.offload_optimizer), ("offload_param", config.offload_parameters)):
        if place != "none":
            path = {"nvme_path": str(Path(config.nvme_path).expanduser())} if place == "nvme" else {}
            zero[key] = {"device": place, **path}
    options: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,  # set before every step: it may be a schedule
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    if dtype == "bfloat16":
        options["bf16"] = {"enabled": True, "check_grad_overflow": True}
        options["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.deepspeed_config:
        _merge(options, _read(config.deepspeed_config), "", config.deepspeed_config)
    return options


def check_nvme(config: DistributedConfig) -> None:
    """ConfigError where masters, moments or parameters are to live on a disk and DeepSpeed cannot reach one here."""
    if config.engine != "deepspeed" or "nvme" not in (config.offload_optimizer, config.offload_parameters):
        return
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ConfigError(
            "distributed: offload to 'nvme' needs DeepSpeed's async_io, which cannot be built here (it needs libaio: "
            "apt-get install libaio-dev); install it, or offload to 'cpu'"
        )


def _read(name: str) -> Mapping[str, Any]:
    try:
        found = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"distributed.deepspeed_config = {name!r}: cannot be read ({error}); give a JSON file"
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"distributed.deepspeed_config = {name!r} holds no JSON object; write {{...}}")
    return found


def _merge(options: dict[str, Any], further: Mapping[str, Any], path: str, file: str) -> None:
    known = FURTHER_ZERO.get(path.removesuffix("."), ()) if path else FURTHER
    for key, value in further.items():
        name = f"{path}{key}"
        if key in options and isinstance(options[key], dict) and isinstance(value, dict):
            _merge(options[key], value, f"{name}.", file)
        elif key not in options and key not in known:
            raise ConfigError(
                f"{file}: {name} = {value!r} is not passed on: beside what the recipe sets only "
                f"{', '.join(known) or 'nothing'} is; take it out of the file ([optimizer], the stage's lr and "
                "run.dtype are the recipe's)"
            )
        elif key in options and options[key] != value:
            raise ConfigError(
                f"{file}: {name} = {value!r}, and the recipe makes it {options[key]!r}: take it out of the file; "
                "[distributed], [optimizer] and run.dtype decide it"
            )
        else:
            options[key] = value
