"""Training and serving of the reward models: helpful (pairwise, summary only) and safe (pointwise, whole response)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from r1fast.config import Config
from r1fast.context import RunContext
from r1fast.metrics import ratios
from r1fast.readings import Sums
from r1fast.records import Rollout
from r1fast.reward_model import RewardModel, pairwise_loss, pointwise_loss, summary_of
from r1fast.rewards.response import response_text
from r1fast.schedule import at, cosine
from r1fast.scorer import ModelReward
from r1fast.source import PreferencePair, SafetyExample
from r1fast.stream import Stream

KINDS = ("helpful", "safe")
Loss = Callable[[RewardModel, list[list[list[int]]]], torch.Tensor]


def run_reward_models(context: RunContext, stage: str) -> dict[str, float]:
    """Train both from SFT 2's model, measure each on held-out data, write `helpful/` and `safe/`."""
    config = context.config.for_stage(stage)
    options, seed = config.reward_model, config.run.seed
    policy = context.load("sft_2", stage=stage)
    start = context.directory("sft_2") / "checkpoint"
    context.console.stage_start(stage, 2 * num_steps(config), f"{options.pairs:,} pairs, {options.pairs:,} responses")
    helpful = RewardModel.from_policy(policy, start)
    pairs = [encode_pair(helpful, pair) for pair in context.source.preference_pairs("train", options.pairs, seed)]
    train(context, stage, helpful, pairs, 0, config)
    held_out_pairs = context.source.preference_pairs("held_out", options.held_out_pairs, seed)
    safe = RewardModel.from_policy(policy, start)
    labelled = [encode_safety(safe, item) for item in context.source.safety_examples("train", options.pairs, seed)]
    train(context, stage, safe, labelled, num_steps(config), config)
    held_out_safety = context.source.safety_examples("held_out", options.held_out_pairs, seed)
    result = {
        "pair_accuracy": pair_accuracy(helpful, held_out_pairs),
        "safety_accuracy": safety_accuracy(safe, held_out_safety),
        "held_out_pairs": len(held_out_pairs),
    }
    if context.ranks.rank == 0:
        helpful.save(context.directory(stage) / "helpful")
        safe.save(context.directory(stage) / "safe")
    context.ranks.barrier()
    context.console.note(
        f"{stage}: held-out pair accuracy {result['pair_accuracy']:.3f}, "
        f"safety accuracy {result['safety_accuracy']:.3f}"
    )
    return result


Item = tuple[list[int], list[int]] | tuple[list[int], float]


def encode_pair(model: RewardModel, pair: PreferencePair) -> Item:
    """Token ids of the chosen and the rejected summary."""
    chosen, rejected = model.encode([pair.prompt] * 2, [summary_of(pair.chosen), summary_of(pair.rejected)])
    return chosen, rejected


def encode_safety(model: RewardModel, item: SafetyExample) -> Item:
    """Token ids of the whole response, and 1 if it is safe."""
    return model.encode([item.prompt], [item.response])[0], float(item.safe)


def num_steps(config: Config) -> int:
    """[reward_model] steps, or one epoch."""
    return config.reward_model.steps or max(1, config.reward_model.pairs // config.reward_model.batch_size)


def train(
    context: RunContext, stage: str, model: RewardModel, items: Sequence[Item], offset: int, config: Config
) -> None:
    """AdamW with a cosine to a tenth; gradients are summed over ranks and divided by the global batch size."""
    options, name = config.reward_model, "safe" if offset else "helpful"
    steps = num_steps(config)
    stream = Stream(items, f"{stage} {name} {config.run.seed}")
    parameters = list(model.module.parameters())
    optimizer = torch.optim.AdamW(parameters, betas=(config.optimizer.beta1, config.optimizer.beta2), weight_decay=0.0)
    for step in range(steps):
        start = time.perf_counter()
        rate = cosine(at(options.lr, step), at(options.lr, step) / 10, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = context.ranks.shard(stream.take(step * options.batch_size, options.batch_size))
        loss, right = _loss(model, batch)
        (loss / options.batch_size).backward()  # type: ignore[no-untyped-call]
        sum_gradients(context, parameters)
        torch.nn.utils.clip_grad_norm_(parameters, at(config.optimizer.max_grad_norm, step) or math.inf)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        sums = Sums()
        sums.add(f"{name}_loss", float(loss.detach()), count=len(batch))
        sums.add(f"{name}_accuracy", right, count=len(batch))
        values = {**ratios(context.ranks.reduce(sums)), "lr": rate, "time/step_s": time.perf_counter() - start}
        context.log(stage, offset + step + 1, values)


def sum_gradients(context: RunContext, parameters: Sequence[torch.nn.Parameter]) -> None:
    """Add up the gradients of all ranks, in one call."""
    if context.ranks.world_size == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = context.ranks.all_reduce_(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    parts = torch.split(flat, [p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def _loss(model: RewardModel, batch: Sequence[Item]) -> tuple[torch.Tensor, float]:
    """Summed loss of a batch and how many of its items the model judges rightly."""
    if not batch:
        return sum(p.sum() for p in model.module.parameters()) * 0.0, 0.0
    if isinstance(batch[0][1], list):
        scores = model.score([item[0] for item in batch] + [item[1] for item in batch])  # type: ignore[misc]
        chosen, rejected = scores.chunk(2)
        return pairwise_loss(chosen, rejected), float((chosen > rejected).sum())
    scores = model.score([item[0] for item in batch])
    labels = torch.tensor([float(item[1]) for item in batch], device=scores.device)  # type: ignore[arg-type]
    return pointwise_loss(scores, labels), float(((scores > 0) == (labels > 0.5)).sum())


def pair_accuracy(model: RewardModel, pairs: Sequence[PreferencePair]) -> float:
    """Share of pairs whose chosen summary scores higher."""
    prompts = [pair.prompt for pair in pairs]
    chosen = model.score_responses(prompts, [summary_of(pair.chosen) for pair in pairs])
    rejected = model.score_responses(prompts, [summary_of(pair.rejected) for pair in pairs])
    return sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(pairs)


def safety_accuracy(model: RewardModel, items: Sequence[SafetyExample]) -> float:
    """Share of responses on the right side of 0."""
    scores = model.score_responses([item.prompt for item in items], [item.response for item in items])
    return sum((value > 0) == item.safe for value, item in zip(scores, items, strict=True)) / len(items)


def load_model_rewards(context: RunContext, names: Iterable[str]) -> dict[str, ModelReward]:
    """The trained reward models among `names`, as functions of whole batches with values in [0, 1]."""
    wanted = [name for name in KINDS if name in set(names)]
    if not wanted:
        return {}
    directory = context.directory("reward_models")
    policy = context.load("sft_2", stage="reward_models")
    return {
        name: as_reward(RewardModel.load(directory / name, policy), summary_only=name == "helpful") for name in wanted
    }


def as_reward(model: RewardModel, *, summary_only: bool) -> ModelReward:
    """sigmoid(score) of each rollout; an empty summary earns nothing."""

    def reward(rollouts: Sequence[Rollout]) -> list[float]:
        texts = [response_text(rollout.prompt, rollout) for rollout in rollouts]
        shown = [summary_of(text) for text in texts] if summary_only else texts
        scores = model.score_responses([rollout.prompt for rollout in rollouts], shown)
        return [1 / (1 + math.exp(-value)) if text.strip() else 0.0 for value, text in zip(scores, shown, strict=True)]

    return reward
