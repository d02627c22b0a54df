"""What to change where a plan does not fit, each change tried and its peak given; and what r1fast cannot do at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from r1fast.checks import check_config
from r1fast.cluster import CONTEXT_BYTES, FRAGMENTATION, PROMPT_TOKENS, ClusterPlan, compute_bytes, plan_cluster
from r1fast.config import STAGES, Config, ConfigError
from r1fast.disk import format_bytes
from r1fast.model_size import ModelSize
from r1fast.weight_sharing import shares_weights

MOST_DOUBLINGS = 6
LONG_TOKENS = 16384  # of a sequence that several processes may share
TEAM_SHARE = 0.35  # of a GPU's memory, most that vLLM's weights are advised to take
Change = Callable[[Config], Config]


def advise(plan: ClusterPlan, config: Config, student: ModelSize | None) -> list[str]:
    """Sentences; empty where everything fits and can run."""
    advice = list(_cannot(plan))
    if not plan.over:
        return advice
    name, phase = plan.over[0]
    items = ", ".join(f"{item} {format_bytes(size)}" for item, size in phase.memory if size)
    advice.append(
        f"{name}, {phase.name}: {format_bytes(phase.peak)} of {format_bytes(plan.gpu.memory)} a GPU ({items})"
        + ("" if phase.peak > plan.gpu.memory else "; the cache does not hold one sample at its limit")
    )
    if STAGES[name] == "reward_model" and 2 * 4 * plan.stages[name].size.num_params > plan.gpu.memory:
        return [
            *advice,
            "weights and gradients of reward models are whole, in float32, on every GPU, whatever the recipe "
            "says: leave the stage out and let a judge grade in RL 2 (rewards.general.judge), or take a smaller "
            "model",
        ]
    if _too_large(plan) and not _team(plan):
        return [*advice, _no_team(plan)]
    tried, lead = config, ""
    for text, change in _changes(config, plan):
        tried = change(tried)
        now = plan_cluster(tried, plan.model, student, plan.gpu, plan.num_gpus)
        peak = max(phase.peak for stage in now.stages.values() for phase in stage.phases)
        result = f"{format_bytes(peak)} at the peak, in {now.over[0][0]}" if now.over else "everything fits"
        advice.append(f"{lead}{text}: {result}")
        if not now.over:
            return [*advice, *_refused(tried)]
        lead = "and "
    for doubling in range(1, MOST_DOUBLINGS + 1):
        most = plan.num_gpus << doubling
        if plan.num_gpus == 1 or (most > plan.gpu.per_node and most % plan.gpu.per_node):
            break
        if not plan_cluster(tried, plan.model, student, plan.gpu, most).over:
            return [*advice, f"{lead}{most} GPUs: everything fits", *_refused(tried)]
    return [*advice, "shorter completions (max_tokens), or GPUs with more memory"]


def _cannot(plan: ClusterPlan) -> Iterator[str]:
    """What keeps a model from running whatever the memory."""
    for name, stage in plan.stages.items():
        samples = any(phase.wanted_rows for phase in stage.phases)
        if not samples or stage.config.rollout.backend != "paged":
            continue
        if stage.size.latent:
            yield (
                f"{name} would not start: latent attention (MLA) leaves no keys and values for each head, so the paged "
                'cache cannot hold it: set rollout.backend = "vllm", untried with it'
            )
            return
        if stage.size.expert_params:
            yield (
                f"{name}: experts are routed by the host, so decode steps would not be CUDA graphs: set "
                "rollout.cuda_graphs = false, untried with experts"
            )
            return


def _refused(config: Config) -> Iterator[str]:
    """Why the start would refuse what the changes have come to."""
    try:
        check_config(config)
    except ConfigError as error:
        yield f"but then the start refuses: {error}"


def _largest(plan: ClusterPlan) -> ModelSize:
    return max((stage.size for stage in plan.stages.values()), key=lambda size: size.num_params)


def _weight_bytes(plan: ClusterPlan) -> int:
    """Of the largest model in the compute dtype."""
    return _compute_bytes(plan) * _largest(plan).num_params


def _compute_bytes(plan: ClusterPlan) -> int:
    return compute_bytes(next(iter(plan.stages.values())).config)


def _too_large(plan: ClusterPlan) -> bool:
    """Whether weights that every GPU holds whole, or its share of vLLM's, leave no room."""
    others = [(name, stage) for name, stage in plan.stages.items() if STAGES[name] != "reward_model"]
    weights = _weight_bytes(plan)
    if all(shares_weights(stage.config, name) for name, stage in others):
        drawn = [
            stage for _, stage in others if any(phase.name == "load" or phase.wanted_rows for phase in stage.phases)
        ]
        if not drawn:
            return False
        weights //= min(stage.config.rollout.tensor_parallel for stage in drawn)
    return CONTEXT_BYTES + FRAGMENTATION * weights > 0.7 * plan.gpu.memory


def _team(plan: ClusterPlan) -> int:
    """The fewest GPUs, a power of 2, over which vLLM's weights leave room for the rest; 0: there are none."""
    largest = _largest(plan)
    for team in (1 << power for power in range(1, 10)):
        if plan.num_gpus % team or (largest.num_heads and largest.num_heads % team):
            return 0
        if _weight_bytes(plan) / team <= TEAM_SHARE * plan.gpu.memory:
            return team
    return 0


def _no_team(plan: ClusterPlan) -> str:
    largest = _largest(plan)
    weights = _weight_bytes(plan)
    parts = 2 ** math.ceil(math.log2(weights / (TEAM_SHARE * plan.gpu.memory)))
    shares = _compute_bytes(plan) + 4 + 8 + 4  # parameters, masters, moments, gradients
    shared = format_bytes(shares * largest.num_params / plan.num_gpus)
    return (
        f"every GPU holds the weights whole, {format_bytes(weights)}, since each samples on its own: it would not "
        f"start. Shared out over {plan.num_gpus} GPUs, parameters, masters, moments and gradients are {shared} a GPU; "
        f"vLLM would have to split the weights over {parts} GPUs, {format_bytes(weights / parts)} each: take a "
        "multiple of them, or a smaller model"
    )


def _changes(config: Config, plan: ClusterPlan) -> Iterator[tuple[str, Change]]:
    """What costs little first; each takes a configuration to the next."""
    views = [stage.config for stage in plan.stages.values()]
    zero = config.distributed
    shares = any(shares_weights(stage.config, name) for name, stage in plan.stages.items())
    if _too_large(plan) and (team := _team(plan)):
        shares = True
        yield (
            'distributed.engine = "deepspeed" with zero_stage = 3, rollout.backend = "vllm" with '
            f"rollout.tensor_parallel = {team}, so that no GPU holds the weights whole"
            + (", and no adapters" if config.lora.rank else ""),
            _sharer(team),
        )
    if not all(view.optimizer.gradient_checkpointing for view in views):
        yield "optimizer.gradient_checkpointing = true", _setter("optimizer", gradient_checkpointing=True)
    if plan.num_gpus > 1 and not shares and (zero.engine == "torch" or zero.zero_stage != 2):
        text = 'distributed.engine = "deepspeed" with zero_stage = 2'
        yield text, _setter("distributed", engine="deepspeed", zero_stage=2, offload_parameters="none")
    longest = max(
        (PROMPT_TOKENS + stage.limit for stage in plan.stages.values() if stage.most_tokens is not None), default=0
    )
    if longest and max(view.optimizer.micro_batch_tokens for view in views) > longest:
        text = f"optimizer.micro_batch_tokens = {longest}, one sequence at its limit"
        yield text, _setter("optimizer", micro_batch_tokens=longest)
    groups = [n for n in plan.model.sequence_groups() if n <= plan.gpu.per_node and not plan.num_gpus % n]
    if longest >= LONG_TOKENS and zero.sequence_parallel == 1 and groups:
        yield (
            f"distributed.sequence_parallel = {groups[-1]}",
            _setter("distributed", sequence_parallel=groups[-1]),
        )
    held = {item for stage in plan.stages.values() for phase in stage.phases for item, _ in phase.memory}
    if held & {"reference", "reward models"} and not all(view.optimizer.offload_idle_models for view in views):
        yield "optimizer.offload_idle_models = true", _setter("optimizer", offload_idle_models=True)
    if not all(view.optimizer.offload_activations for view in views):
        yield "optimizer.offload_activations = true", _setter("optimizer", offload_activations=True)
    if any(view.distributed.offload_optimizer == "none" for view in views):
        engine = ' with distributed.engine = "deepspeed"' if plan.num_gpus == 1 and zero.engine == "torch" else ""
        yield (
            f'distributed.offload_optimizer = "cpu"{engine}',
            _setter("distributed", engine="deepspeed", offload_optimizer="cpu"),
        )
    if not shares and not config.lora.rank and any(stage.most_tokens is not None for stage in plan.stages.values()):
        yield "lora.rank = 16, adapters in the place of all weights", _setter("lora", rank=16)
    if "reference" in held:
        yield 'loss.kl = "none", so no reference', _setter("loss", kl="none")


def _sharer(team: int) -> Change:
    def change(config: Config) -> Config:
        config = _setter("distributed", engine="deepspeed", zero_stage=3)(config)
        config = _setter("rollout", backend="vllm", tensor_parallel=team, draft_tokens=0)(config)
        return _setter("lora", rank=0)(config)

    return change


def _setter(section: str, **values: Any) -> Change:
    """Sets options of a section, whatever stages say of their own."""

    def change(config: Config) -> Config:
        stages = {name: _without(own, section, values) for name, own in config.stages.items()}
        changed = {section: replace(getattr(config, section), **values)}
        return replace(config, stages=stages, **changed)

    return change


def _without(own: Mapping[str, Any], section: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a stage says of its own, without those options."""
    if not isinstance(own.get(section), Mapping):
        return own
    return {**own, section: {key: value for key, value in own[section].items() if key not in values}}
