"""Training and serving of the reward models: helpful (pairwise, summary only) and safe (pointwise, whole response)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from r1fast.bad_step import require_good
from r1fast.config import Config
from r1fast.context import RunContext
from r1fast.metrics import ratios
from r1fast.packing import partition
from r1fast.policy import Policy
from r1fast.progress import Progress
from r1fast.readings import Sums
from r1fast.records import Rollout
from r1fast.replicas import ReplicaOptimizer, sum_gradients
from r1fast.reward_model import RewardModel, pairwise_loss, pointwise_loss, summary_of
from r1fast.rewards.response import response_text
from r1fast.schedule import at, cosine
from r1fast.source import PreferencePair, SafetyExample
from r1fast.step_guard import StepGuard
from r1fast.stream import Stream

KINDS = ("helpful", "safe")
TrainedReward = Callable[[Sequence[Rollout]], list[float]]  # a `scorer.ModelReward` that cannot fail


def run_reward_models(context: RunContext, stage: str) -> dict[str, float]:
    """Train both from SFT 2's model, measure each on held-out data, write `helpful/` and `safe/`."""
    config = context.config.for_stage(stage)
    options = config.reward_model
    with context.stop.interruptible():
        policy = context.load("sft_2", stage=stage).without_weights()
    progress = Progress(context, stage)
    saved = progress.resume() or {"step": 0, "measured": {}, "training": {}}
    context.console.stage_start(
        stage,
        len(KINDS) * num_steps(config),
        f"{options.pairs:,} pairs, {options.pairs:,} responses",
        first_step=saved["step"],
    )
    measured: dict[str, float] = saved["measured"]
    begun: dict[str, Any] = saved["training"]
    for number, kind in enumerate(KINDS):
        if kind not in measured:
            measured[kind] = _train(context, stage, policy, kind, progress, dict(measured), begun)
            progress.save((number + 1) * num_steps(config), {"measured": measured, "training": begun})
    result = {
        "pair_accuracy": measured["helpful"],
        "safety_accuracy": measured["safe"],
        "held_out_pairs": options.held_out_pairs,
    }
    context.console.note(
        f"{stage}: held-out pair accuracy {result['pair_accuracy']:.3f}, "
        f"safety accuracy {result['safety_accuracy']:.3f}"
    )
    return result


def _train(
    context: RunContext,
    stage: str,
    policy: Policy,
    kind: str,
    progress: Progress,
    measured: dict[str, float],
    begun: dict[str, Any],
) -> float:
    """Train a kind of reward model, from `begun`, which is empty after that, and write it; its held-out accuracy.

    A function of its own, so that what one model holds is given up before the next is loaded.
    """
    config = context.config.for_stage(stage)
    options, seed = config.reward_model, config.run.seed
    with context.stop.interruptible():
        model = RewardModel.from_policy(policy, context.directory("sft_2") / "checkpoint")
        model.beat = context.ranks.pulse.beat
        items = training_items(context, model, kind, options.pairs, seed)
    training = Training(context, stage, model, items, kind, config)
    training.resume(begun)
    begun.clear()
    offset = KINDS.index(kind) * num_steps(config)
    with context.stop.held(), context.ranks.pulse.during("training"):
        while training.step < num_steps(config):
            training.update(offset)
            state = partial(_state, measured, training, training.positions())
            progress.step_done(offset + training.step, state, alone=not training.optimizer.shared)
    with context.ranks.pulse.during("evaluation"):
        accuracy = held_out_accuracy(context, model, kind, options.held_out_pairs, seed)
    context.save_model(stage, kind, lambda: model.save)
    return accuracy


def _state(measured: dict[str, float], training: Training, positions: Mapping[str, Any]) -> dict[str, Any]:
    return {"measured": measured, "training": {**training.weights(), **positions}}


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


def training_items(context: RunContext, model: RewardModel, kind: str, count: int, seed: int) -> list[Item]:
    """The encoded training data of a kind of reward model."""
    if kind == "helpful":
        return [encode_pair(model, pair) for pair in context.source.preference_pairs("train", count, seed)]
    return [encode_safety(model, item) for item in context.source.safety_examples("train", count, seed)]


def held_out_accuracy(context: RunContext, model: RewardModel, kind: str, count: int, seed: int) -> float:
    """How often a trained model is right on data it has not seen."""
    if kind == "helpful":
        return pair_accuracy(model, context.source.preference_pairs("held_out", count, seed))
    return safety_accuracy(model, context.source.safety_examples("held_out", count, seed))


class Training:
    """AdamW with a cosine to a tenth; gradients are summed over ranks and divided by the global batch size.

    Every rank trains on its share of a batch, in micro-batches of `optimizer.micro_batch_tokens`, which change nothing
    but rounding, and holds weights and gradients whole, in float32. ZeRO (`distributed.zero_stage` from 1 on) shares
    out the moments, and no more: offloading and sequence groups are for policies. So is `optimizer.weight_decay`: here
    there is none.
    """

    def __init__(
        self, context: RunContext, stage: str, model: RewardModel, items: Sequence[Item], kind: str, config: Config
    ) -> None:
        self.context, self.stage, self.model, self.kind, self.config = context, stage, model, kind, config
        self.stream = Stream(items, f"{stage} {kind} {config.run.seed}")
        self.parameters = list(model.module.parameters())
        options, shared = config.optimizer, config.distributed.shares_moments(context.ranks.world_size)
        model.keep_activations(recompute=options.gradient_checkpointing, offload=options.offload_activations)
        self.optimizer = ReplicaOptimizer(self.parameters, options, context.ranks, shared=shared)
        self.step = self.num_updates = 0  # a step may be skipped
        self.guard = StepGuard(config.faults, f"{stage} {kind}", context.console.warn)

    def update(self, offset: int) -> None:
        """One optimizer step, logged as step `offset` + its number."""
        options, start = self.config.reward_model, time.perf_counter()
        rate = cosine(at(options.lr, self.step), at(options.lr, self.step) / 10, self.step, num_steps(self.config))
        batch = self.context.ranks.shard(self.stream.take(self.step * options.batch_size, options.batch_size))
        found = self.guard.update(partial(self._update, batch, rate), offset + self.step + 1)
        self.step += 1
        sums = {name: value for name, value in found.items() if name.startswith(self.kind)}
        values = {**ratios(sums), "lr": rate, **self.guard.figures(), "time/step_s": time.perf_counter() - start}
        self.context.log(self.stage, offset + self.step, values)

    def _update(self, batch: Sequence[Item], rate: float, most_norm: float) -> dict[str, float]:
        """The optimizer step; raises BadStep as `Trainer.step`. A rank without items takes part."""
        ranks, own = self.context.ranks, Sums()
        for items in micro_batches(batch, self.config.optimizer.micro_batch_tokens):
            loss, right = _loss(self.model, items)
            (loss / self.config.reward_model.batch_size).backward()  # type: ignore[no-untyped-call]
            own.add(f"{self.kind}_loss", float(loss.detach()), count=len(items))
            own.add(f"{self.kind}_accuracy", right, count=len(items))
            ranks.pulse.beat("micro-batch")
        sum_gradients(ranks, self.parameters)
        max_grad_norm = at(self.config.optimizer.max_grad_norm, self.step) or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, max_grad_norm))
        sums = ranks.reduce(own)
        sums = {**sums, "loss_sum": sums[f"{self.kind}_loss_sum"], "grad_norm_sum": norm}
        try:
            require_good(sums, norm, num_steps=self.step, version=self.step, most_norm=most_norm)
            ranks.pulse.safe.withdraw()
            self.optimizer.step(rate)
            self.num_updates += 1
        finally:
            for parameter in self.parameters:
                parameter.grad = None
        return sums

    def positions(self) -> dict[str, Any]:
        """Of what the next step depends on, what is small."""
        return {"step": self.step, "num_updates": self.num_updates, "guard": self.guard.state_dict()}

    def weights(self) -> dict[str, Any]:
        """The rest of it; the tensors are the live ones. Collective where moments are shared out: rank 0 has them."""
        return {"model": self.model.module.state_dict(), "optimizer": self.optimizer.state_dict(self.num_updates)}

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on."""
        return {**self.positions(), **self.weights()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Continue bitwise from a `state_dict()`; an empty one changes nothing."""
        if state:
            self.step, self.num_updates = state["step"], state["num_updates"]
            self.guard.load_state_dict(state["guard"])
            self.model.module.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"], self.num_updates)


def micro_batches(items: Sequence[Item], budget: int) -> list[list[Item]]:
    """The items in micro-batches of at most `budget` tokens, or of one item; a pair's sequences stay together."""
    lengths = [len(first) + (len(second) if isinstance(second, list) else 0) for first, second in items]
    return [[items[n] for n in sorted(numbers)] for numbers in partition(lengths, micro_batch_tokens=budget)]


def _loss(model: RewardModel, batch: Sequence[Item]) -> tuple[torch.Tensor, float]:
    """Summed loss of a batch and how many of its items the model judges rightly."""
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


def load_model_rewards(context: RunContext, names: Iterable[str], *, idles: bool = False) -> dict[str, TrainedReward]:
    """The trained reward models among `names`, as functions of whole batches with values in [0, 1].

    `idles`: their weights are in the host's memory but while they score.
    """
    wanted = [name for name in KINDS if name in set(names)]
    if not wanted:
        return {}
    directory = context.directory("reward_models")
    policy = context.load("sft_2", stage="reward_models").without_weights()
    rewards = {}
    for name in wanted:
        model = RewardModel.load(directory / name, policy)
        model.beat = context.ranks.pulse.beat
        if idles:
            model.idle()
        rewards[name] = as_reward(model, summary_only=name == "helpful")
    return rewards


def as_reward(model: RewardModel, *, summary_only: bool) -> TrainedReward:
    """sigmoid(score) of each rollout; an empty summary earns nothing."""

    def reward(rollouts: Sequence[Rollout]) -> list[float]:
        texts = [response_text(rollout.prompt, rollout) for rollout in rollouts]
        shown = [summary_of(text) for text in texts] if summary_only else texts
        scores = model.score_responses([rollout.prompt for rollout in rollouts], shown)
        return [1 / (1 + math.exp(-value)) if text.strip() else 0.0 for value, text in zip(scores, shown, strict=True)]

    return reward
