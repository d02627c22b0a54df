"""Whether one GPU can hold a run's models at all, and the paged cache their keys: refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch

from r1fast.checks import reads_dev
from r1fast.config import STAGES, Config, ConfigError
from r1fast.context import compute_dtype
from r1fast.disk import format_bytes
from r1fast.model_size import ModelSize
from r1fast.phase_memory import MOMENTARY, Items, Place, total
from r1fast.plan import stage_works
from r1fast.rollout.page_store import CacheShape


def sampling(config: Config, stages: Collection[str]) -> list[str]:
    """The stages that draw completions."""
    return [stage for stage in stages if reads_dev(config, stage) or STAGES[stage] not in ("sft", "reward_model")]


def check_cache(config: Config, described: Any, stages: Collection[str], device: torch.device) -> None:
    """ValueError where the paged engine cannot hold the keys and values of a model that one of `stages` samples.

    `described`: its Hugging Face config.
    """
    if any(config.for_stage(stage).rollout.backend == "paged" for stage in sampling(config, stages)):
        name = (getattr(described, "architectures", None) or [described.model_type])[0]
        dtype = compute_dtype(config, device)
        CacheShape.of_config(described, name=name, dtype=dtype, device_type=device.type)


def check_gpu(
    config: Config, stages: Collection[str], described: Mapping[str, Any], device: torch.device, world_size: int
) -> None:
    """`check_device_memory` for the GPU at hand; `described`: configs of `base` and `student`, where needed."""
    sizes = {root: ModelSize.of(own) for root, own in described.items()}
    student = sizes.get("student")
    model = sizes.get("base", student)
    assert model is not None, "a pipeline has stages, and they start from some model"
    config = replace(config, pipeline=replace(config.pipeline, stages=tuple(stages)))  # finished ones need no model
    place = Place(on_gpu=True, compute_bytes=compute_dtype(config, device).itemsize, num_processes=world_size)
    memory_bytes = torch.cuda.get_device_properties(device).total_memory
    check_device_memory(config, stages, model, student, place, memory_bytes)


def check_device_memory(
    config: Config,
    stages: Collection[str],
    model: ModelSize,
    student: ModelSize | None,
    place: Place,
    memory_bytes: int,
) -> None:
    """`memory_bytes`: of one GPU. Counts what does not depend on lengths: weights, copies, gradients, the optimizer.

    Raises:
        ConfigError: a stage's alone is more, with the items and what to change.
    """
    for name, _, work in stage_works(config, model, student, place, prompt_tokens=0):
        if name not in stages:
            continue
        certain = max((_certain(items) for _, items in work.phases), key=total)
        if total(certain) > memory_bytes:
            items = ", ".join(f"{item} {format_bytes(size)}" for item, size in certain if size)
            way_out = _way_out(config.for_stage(name), name, certain, memory_bytes)
            raise ConfigError(
                f"stage {name} would hold {format_bytes(total(certain))} on every GPU whatever the lengths ({items}), "
                f"and one has {format_bytes(memory_bytes)}: {way_out}"
            )


def _certain(items: Items) -> Items:
    return tuple(item for item in items if item[0] not in MOMENTARY)


def _way_out(config: Config, stage: str, items: Items, memory_bytes: int) -> str:
    sizes = dict(items)
    if STAGES[stage] == "reward_model":
        ways = ["weights and gradients of a reward model are whole, in float32, on every GPU"]
        if config.distributed.engine == "torch":
            ways.append('distributed.engine = "deepspeed" shares the moments out over several')
        return "; ".join([*ways, "take a smaller model, or GPUs with more memory (r1fast plan --gpu NAME says which)"])
    weights = sizes.get("rollout copy", 0) + sizes.get("parameters", 0)
    if sizes.get("vLLM's weights", 0) > memory_bytes // 2:
        return (
            f"rollout.tensor_parallel = {config.rollout.tensor_parallel} processes share vLLM's weights: let more of "
            "them, on a GPU each (r1fast plan --gpu NAME says how many), take a smaller model, or GPUs with more memory"
        )
    if weights > memory_bytes:
        return (
            "each process samples on its own, so it holds the weights whole: share them out with distributed.engine = "
            '"deepspeed", distributed.zero_stage = 3, rollout.backend = "vllm" and rollout.tensor_parallel '
            "(r1fast plan --gpu NAME says over how many), take a smaller model, or GPUs with more memory"
        )
    ways = []
    if config.distributed.engine == "torch" and sizes.get("moments"):
        ways.append('distributed.engine = "deepspeed" shares masters, moments and gradients out')
    if sizes.get("moments"):
        ways.append('distributed.offload_optimizer = "cpu" keeps masters and moments in the host\'s memory')
    if "reference" in sizes:
        ways.append('loss.kl = "none" needs no reference')
    return "; ".join([*ways, "or take GPUs with more memory (r1fast plan --gpu NAME says which)"])
