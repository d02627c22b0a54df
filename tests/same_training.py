"""Whether training is the same on some processes, by any engine, however it is split and packed, as on one alone.

Hypothesis draws the cases inside the process group, on every rank the same ones, since what is drawn depends on what
was found alone, and ranks tell each other what they have found.
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_model import NUM_VOCAB, tiny_policy
from torch import Tensor

from r1fast.config import OptimizerConfig
from r1fast.distributed import Ranks, start
from r1fast.distributed_config import DistributedConfig
from r1fast.kernels.group_advantage import group_advantage
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.metrics import ratios
from r1fast.packing import pack
from r1fast.policy import Policy
from r1fast.records import Prompt, Rollout, ScoredRollout
from r1fast.sequence_parallel import SequenceLogprobs
from r1fast.sharded import Shards
from r1fast.stages.minibatches import Minibatch, Packing, as_sequence, split_rollout
from r1fast.trainer import Logprobs, Trainer, global_denominator, score
from r1fast.trainers import AnyTrainer
from r1fast.zero_trainer import ZeroTrainer

STEPS, LR = 5, 1e-3
# eps: a gradient that is rounding alone must not become a whole step
OPTIMIZER = OptimizerConfig(max_grad_norm=0.5, weight_decay=0.1, eps=1e-4)
LOSS = PolicyLoss(objective="clip", kl="none", kl_coef=0.0, clip_low=0.2, clip_high=0.3, entropy_coef=0.01)
# torch, or a stage of ZeRO and where masters and moments live ("2 cpu"), or that nobody holds the weights ("3 shared")
ENGINES = ("torch", "0", "1", "2", "3", "3 shared")


@dataclass(frozen=True)
class Case:
    """Groups of one prompt each, and how they are split. `owners`: of each prompt, modulo the number of ranks."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]  # length of the prompt, of its completions
    owners: tuple[int, ...]
    budget: int
    exchanged: bool  # shared out anew, as in a run; else each rank trains on what it has
    updates: int
    share_prompts: bool
    skip: bool
    aggregate: str


GROUP = st.tuples(st.integers(1, 12), st.lists(st.integers(0, 16), min_size=2, max_size=3).map(tuple))
CASES = st.integers(1, 5).flatmap(
    lambda count: st.builds(
        Case,
        groups=st.tuples(*[GROUP] * count),
        owners=st.tuples(*[st.integers(0, 3)] * count),
        budget=st.sampled_from([1, 30, 90, 5000]),
        exchanged=st.booleans(),
        updates=st.integers(1, 2),
        share_prompts=st.booleans(),
        skip=st.booleans(),
        aggregate=st.sampled_from(["sequence_mean", "token_mean", "constant"]),
    )
)


def rollout_of(case: Case, number: int, ranks: Ranks) -> list[ScoredRollout]:
    """This rank's groups of rollout `number`, with advantages; some groups have equal rewards."""
    found = []
    for place, (num_prompt, lengths) in enumerate(case.groups):
        generator = torch.Generator().manual_seed(1000 * number + place)
        draw = partial(torch.randint, NUM_VOCAB, generator=generator)
        prompt = Prompt(id=str(place), text="", token_ids=tuple(draw((num_prompt,)).tolist()))
        rewards = torch.randint(3, (len(lengths),), generator=generator).double()
        advantages = group_advantage(rewards, torch.zeros(len(lengths), dtype=torch.int64))
        for sample, length in enumerate(lengths):
            rollout = Rollout(
                prompt=prompt,
                sample_index=sample,
                token_ids=draw((length,)),
                logp=-4.0 - torch.rand(length, generator=generator),
                log_kept_mass=torch.zeros(length),
                entropy=torch.zeros(length),
                text="",
                finish_reason="stop",
                policy_version=0,
            )
            if case.owners[place] % ranks.world_size == ranks.rank:
                value = float(advantages[sample])
                found.append(ScoredRollout(rollout=rollout, reward=0.0, parts={}, outcome="ok", advantage=value))
    return found


def minibatches(case: Case, number: int, ranks: Ranks) -> list[Minibatch]:
    scored = rollout_of(case, number, ranks)
    if case.exchanged:
        packing = Packing(
            micro_batch_tokens=case.budget,
            num_vocab=NUM_VOCAB,
            share_prompts=case.share_prompts,
            skip=case.skip,
        )
        places = {str(place): place for place in range(len(case.groups))}
        return split_rollout(scored, places, case.updates, f"rollout {number}", packing, ranks)
    batches = pack([as_sequence(s) for s in scored], micro_batch_tokens=case.budget, share_prompts=case.share_prompts)
    return [Minibatch(batches=batches, left_out=[], figures={})]


def train(case: Case, trainer: AnyTrainer, ranks: Ranks, logprobs: Logprobs | None) -> dict[str, Any]:
    """Metrics of five steps, the first gradient's and the last masters and moments: what must be the same."""
    metrics: list[dict[str, float]] = []
    first: list[Tensor] = []
    loss = replace(LOSS, aggregate=case.aggregate, entropy_coef=0.0 if case.skip else LOSS.entropy_coef)
    number = 0
    while len(metrics) < STEPS:
        parts = minibatches(case, number, ranks)
        old = None
        if len(parts) > 1:
            old = [score(trainer.policy, part.batches, temperature=0.8, logprobs=logprobs) for part in parts]
        for index, part in enumerate(parts[: STEPS - len(metrics)]):
            denominator = global_denominator(
                loss.aggregate, part.batches, ranks, tokens_per_sequence=20, left_out=part.left_out
            )
            sums = trainer.step(
                part.batches,
                loss=loss,
                denominator=max(denominator, 1.0),
                lr=LR,
                temperature=0.8,
                old_logp=old[index] if old else None,
            )
            metrics.append(sums)
            if not first:
                first = [one["exp_avg"].clone() for one in state_of(trainer)["optimizer"]["state"].values()]
        number += 1
    state = state_of(trainer)
    return {
        "metrics": metrics,
        "first gradient": flat(first),
        "gradients": flat([one["exp_avg"] for one in state["optimizer"]["state"].values()]),
        "masters": flat(state["masters"]),
        "policy": flat(whole_parameters(trainer.policy)),
    }


def whole_parameters(policy: Policy) -> list[Tensor]:
    if policy.shards is not None:
        return [value.clone() for _, value in policy.shards.parameters()]
    return [p.detach() for p in policy.module.parameters()]


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else torch.zeros(0)


def state_of(trainer: AnyTrainer) -> dict[str, Any]:
    state = trainer.state_dict()
    state["masters"] = [master.clone() for master in state["masters"]]
    return state


def comparable(sums: dict[str, float]) -> dict[str, float]:
    """Sums and what a log makes of them; whether a metric has a count of its own or the tokens' depends on the path."""
    counts = ("tokens_count", "packed_tokens_count")
    own = {name: value for name, value in sums.items() if not name.endswith("_count") or name in counts}
    return own | {f"mean {name}": value for name, value in ratios(sums).items()}


def differences(found: dict[str, Any], alone: dict[str, Any], share_prompts: bool) -> list[str]:
    problems = []
    for step, sums in enumerate(zip(found["metrics"], alone["metrics"], strict=True)):
        one, other = map(comparable, sums)
        for name in one.keys() | other.keys():
            if name == "packed_tokens_count" and share_prompts:
                continue  # a prompt that several ranks need is computed by each of them
            if one.get(name) != pytest.approx(other.get(name), rel=2e-4, abs=2e-5, nan_ok=True):
                problems.append(f"step {step}: {name} is {one.get(name)}, alone {other.get(name)}")
    for name, limit in (("first gradient", 1e-4), ("gradients", 1e-3), ("masters", 5e-6), ("policy", 5e-6)):
        error = float((found[name] - alone[name]).norm() / alone[name].norm().clamp_min(1e-3))
        if not error <= limit:
            problems.append(f"{name}: relative error {error:.3g}")
    return problems


def check_same(
    rank: int,
    directory: Path,
    *,
    examples: int,
    engines: tuple[str, ...] = ENGINES,
    sharing: int = 1,
    **model: Any,
) -> None:
    """On all ranks of a group: draw cases and compare every engine with `Trainer` alone.

    `sharing`: processes that share each micro-batch's tokens. `model`: as of `tiny_policy`.
    """
    torch.set_num_threads(1)
    ranks = start("cpu").in_sequence_groups(sharing)
    logprobs = SequenceLogprobs(ranks) if sharing > 1 else None
    alone = Trainer(tiny_policy(**model), OPTIMIZER)
    begin = blank(alone)
    trainers: dict[str, AnyTrainer] = {}
    for engine in engines:
        if engine == "torch":
            trainers[engine] = Trainer(tiny_policy(**model), OPTIMIZER, ranks=ranks, logprobs=logprobs)
        else:
            stage, _, place = engine.partition(" ")
            offload: Any = place if place == "cpu" else "none"
            distributed = DistributedConfig(engine="deepspeed", zero_stage=int(stage), offload_optimizer=offload)
            policy = tiny_policy(**model)
            if place == "shared":
                distributed = replace(distributed, deepspeed_config=str(nothing_persists(directory, ranks)))
                Shards(policy, distributed, ranks)
            trainers[engine] = ZeroTrainer(policy, OPTIMIZER, distributed, ranks=ranks, logprobs=logprobs)
    seen = {"idle ranks": 0, "unequal": 0}

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),  # a smaller example would take minutes of training
    )
    @given(CASES)
    def same(case: Case) -> None:
        if sharing > 1:
            case = replace(case, exchanged=True, share_prompts=False)
        expected: dict[str, Any] = {}
        if rank == 0:
            alone.load_state_dict(copy.deepcopy(begin))
            expected = train(case, alone, Ranks(), None)
        counts = ranks.gather_objects([len(part.batches) for part in minibatches(case, 0, ranks)])
        seen["idle ranks"] += any(0 in own for own in counts)
        seen["unequal"] += len({tuple(own) for own in counts}) > 1
        for engine, trainer in trainers.items():
            trainer.load_state_dict(copy.deepcopy(begin))
            found = train(case, trainer, ranks, logprobs)
            problems = differences(found, expected, case.share_prompts) if rank == 0 else []
            policies = ranks.gather_objects(float(found["policy"].double().sum()))
            if len(set(policies)) > 1:
                problems.append(f"the ranks' policies differ: {policies}")
            problems = [one for part in ranks.gather_objects(problems) for one in part]
            assert not problems, f"engine {engine}, {ranks.world_size} processes: {problems[:5]}"

    same()
    if ranks.num_shares > 1 and examples > 3 and sharing == 1:
        assert seen["unequal"] and seen["idle ranks"], seen
    (directory / f"done-{ranks.world_size}-{sharing}-{rank}").touch()
    ranks.barrier()
    os._exit(0)  # DeepSpeed's own groups end with the process


def nothing_persists(directory: Path, ranks: Ranks) -> Path:
    """DeepSpeed's options for a model this small to be treated as a large one: gathered, ahead of time, and let go."""
    path = directory / "deepspeed.json"
    if ranks.rank == 0:
        options = {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 20_000}
        path.write_text(json.dumps({"zero_optimization": options}))
    ranks.barrier()
    return path


def blank(trainer: Trainer) -> dict[str, Any]:
    """The state before the first step, with moments: zeros."""
    state = state_of(trainer)
    groups = state["optimizer"]["param_groups"]
    order = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    zeros: dict[int, dict[str, Tensor]] = {
        index: {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        for index, p in enumerate(order)
    }
    return state | {"optimizer": {"state": zeros, "param_groups": groups}}
