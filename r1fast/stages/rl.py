"""Reinforcement learning by GRPO: R1-Zero, RL 1, RL 2 and the student's RL are this loop with other settings."""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from r1fast.best_model import BestModel
from r1fast.checks import MODEL_REWARDS
from r1fast.config import Config, RewardWeights, user_input
from r1fast.context import START, RunContext
from r1fast.data.prompts import each_once
from r1fast.diagnosis import why_stalled
from r1fast.evaluate import dev_reading
from r1fast.kernels.group_advantage import group_advantage
from r1fast.logp_gap import LogpGap, max_ratio
from r1fast.lora import add_adapters, save_trained
from r1fast.metrics import ratios
from r1fast.policy import Policy
from r1fast.progress import Progress
from r1fast.readings import Sums, group_sums, sample_sums
from r1fast.records import Batch, Prompt, ScoredRollout
from r1fast.reference import make_reference
from r1fast.rewards.judge import Judge
from r1fast.rollout.backend import make_engine, release, take_sums
from r1fast.rollout.engine import RolloutEngine
from r1fast.rollout.strict import strict_logprobs
from r1fast.samples import pick_groups
from r1fast.sampling import Sampling
from r1fast.schedule import at, with_warmup
from r1fast.scorer import ModelReward, Scorer
from r1fast.sequence_parallel import SequenceLogprobs
from r1fast.stages.minibatches import Minibatch, Packing, split_rollout
from r1fast.stages.reward_models import load_model_rewards
from r1fast.step_dump import StepArguments, dumper
from r1fast.step_guard import StepGuard
from r1fast.stop import Stopped
from r1fast.stream import Stream
from r1fast.trainer import Logprobs, global_denominator, score
from r1fast.trainers import make_trainer

DIAGNOSE_EVERY_STEPS = 10
MAX_REFILLS = 4  # rounds of new prompts per rollout when groups without variance are replaced


def run_rl(context: RunContext, stage: str) -> dict[str, float]:
    """Train `stage`'s starting model by GRPO and write its checkpoint."""
    with context.interruptible(stage):
        loop = RLLoop(context, stage)
    loop.run()
    save_trained(context, stage, loop.policy, loop.config.lora)
    return {"steps": loop.config.rl.steps, **loop.last_dev}


class RLLoop:
    """One GRPO stage. A rollout serves `updates_per_rollout` optimizer steps.

    State is saved between rollouts only: what is left of a rollout would be written for the sake of updates that cost
    little beside it, and a restart samples the very same completions.
    """

    def __init__(self, context: RunContext, stage: str) -> None:
        self.context, self.stage = context, stage
        self.config: Config = context.config.for_stage(stage)
        rl, seed = self.config.rl, self.config.run.seed
        self.policy: Policy = context.load(START[stage], stage=stage)
        with user_input():
            add_adapters(self.policy, self.config.lora, f"{stage} adapters {seed}")
        self.ranks = context.ranks.in_sequence_groups(self.config.distributed.sequence_parallel)
        self.logprobs: Logprobs | None = strict_logprobs if rl.strict else None
        if self.ranks.sequence_parallel > 1:
            self.logprobs = SequenceLogprobs(self.ranks)
        idles = self.config.optimizer.offload_idle_models
        self.reference = make_reference(
            self.policy, self.config, lambda: context.load(START[stage], stage=stage, idles=idles)
        )
        self.trainer = make_trainer(self.policy, self.config, self.ranks, self.logprobs)
        self.gap = LogpGap(self.config.loss, context.console.warn, strict=rl.strict)
        self.guard = StepGuard(self.config.faults, stage, context.console.warn)
        self.engine = make_engine(self.policy, self.config, context.ranks)
        self.judge: Judge | None = None
        self.scorer = Scorer(
            self._weights(),
            model_rewards=self._model_rewards(),
            custom=self.config.scoring.custom,
            gate=self.config.scoring.gate,
            pulse=context.ranks.pulse,
        )
        self.engine.on_sample = self.scorer.foresee
        self.prompts = Stream(context.prompts(self.policy, context.source.prompts("train")), f"{stage} {seed}")
        self.general: Stream[Prompt] | None = None
        if rl.general_prompts_per_step != 0:
            general = context.prompts(self.policy, context.source.general_prompts("train"))
            self.general = Stream(general, f"{stage} general {seed}")
        self.dev = context.prompts(self.policy, context.source.prompts("dev")[: rl.dev_problems])
        self.step, self.cursor, self.general_cursor = 0, 0, 0
        self.places: dict[str, int] = {}  # of the rollout's prompts of all ranks, by id
        self.progress, self.best = Progress(context, stage), BestModel(context, stage)
        self.temperature = self._temperature()
        self.last_dev: dict[str, float] = {}
        self.history: list[Mapping[str, float]] = []
        self.warned: set[str] = set()  # what was said once

    def run(self) -> None:
        """All steps, from the last saved state if there is one."""
        rl = self.config.rl
        resumed = self._resume()
        if not resumed:
            with user_input():
                # in this template; preflight has checked them all without one, so bad ones may be among them
                few = self.prompts.take(0, min(16, rl.steps * at(rl.prompts_per_step, 0)))
                self.scorer.check_gold(few, max_bad_share=0.5 if self.config.data.max_bad_golds else 0.0)
        self.context.console.stage_start(
            self.stage, rl.steps, f"GRPO, {at(rl.prompts_per_step, 0)} prompts x {rl.group_size}", first_step=self.step
        )
        if not resumed:
            with self.context.interruptible(self.stage):
                before = self._dev_evaluation()
            if before:
                self.context.log(self.stage, 0, before)
        try:
            with self.context.stop.held():
                while self.step < rl.steps:
                    self._rollout_and_update()
                    state = partial(self._state, self._positions())
                    self.progress.step_done(self.step, state, alone=self.config.distributed.engine == "torch")
        finally:
            self.scorer.close()
            release(self.engine)

    def _rollout_and_update(self) -> None:
        start = time.perf_counter()
        # of the whole rollout, also where the schedule changes between its updates
        self.temperature = self._temperature()
        self._before_generating()
        with self.context.ranks.pulse.during("rollout"):
            scored, drawn = self._collect_or_stop()
        self._after_generating()
        times = {"time/rollout_s": time.perf_counter() - start, **self.scorer.take_times()}
        groups = [
            [item.reward for item in drawn[i : i + self.config.rl.group_size]]
            for i in range(0, len(drawn), self.config.rl.group_size)
        ]
        sums = sample_sums(drawn)
        sums.update(group_sums(groups))
        sums.update(self.scorer.take_metrics())
        sums.update(take_sums(self.engine))
        if self.judge is not None:
            sums.update(self.judge.take_metrics())
        self._write_samples(scored)
        with self.context.ranks.pulse.during("training"):
            self._updates(scored, sums, times)

    def _updates(self, scored: Seq[ScoredRollout], sums: Sums, times: Mapping[str, float]) -> None:
        updates = min(self.config.rl.updates_per_rollout, self.config.rl.steps - self.step)
        minibatches = self._minibatches(scored)
        old = None
        if len(minibatches) > 1:  # later updates are off-policy: the ratio needs the log-probs before the first
            old = [self._score(self.policy, part.batches) for part in minibatches]
        for number, minibatch in enumerate(minibatches[:updates]):
            self._update(
                minibatch,
                old[number] if old else None,
                sums if number == 0 else Sums(),
                times if number == 0 else {"time/rollout_s": 0.0},
            )

    def _before_generating(self) -> None:
        if self.config.optimizer.offload_while_generating:
            self.trainer.release()  # before anything holds its state, such as what is saved when the run is stopped

    def _after_generating(self) -> None:
        """On a GPU the cache's memory is the trainer's until the next rollout; a CPU would have to clear it anew.

        vLLM stays awake: to start it anew for every rollout would take longer than the rollout.
        """
        if self.policy.device.type == "cuda" and isinstance(self.engine, RolloutEngine):
            self.engine.sleep()

    def _update(
        self, minibatch: Minibatch, old: list[torch.Tensor] | None, sums: Sums, times: Mapping[str, float]
    ) -> None:
        start, batches = time.perf_counter(), minibatch.batches
        rl, loss = self.config.rl, self.config.policy_loss(self.step)
        rate = with_warmup(at(rl.lr, self.step), self.step, rl.warmup_steps)
        ref = None
        if self.reference is not None and loss.kl_coef > 0:
            beat = self.context.ranks.pulse.beat
            ref = self.reference.score(batches, temperature=self.temperature, logprobs=self.logprobs, beat=beat)
        arguments = StepArguments(
            batches=batches,
            denominator=global_denominator(
                loss.aggregate,
                batches,
                self.ranks,
                tokens_per_sequence=at(rl.max_tokens, self.step),
                left_out=minibatch.left_out,
            ),
            lr=rate,
            temperature=self.temperature,
            old_logp=old,
            ref_logp=ref,
        )
        run = partial(self.trainer.step, **vars(arguments))
        update_sums = self.guard.update(
            lambda most_norm: self.gap.update(
                lambda loss, check: run(loss=loss, check=check, most_norm=most_norm), loss, self.step
            ),
            self.step + 1,
            dumper(self.context, self.stage, self.step + 1, self.trainer, arguments, lambda: self.gap.in_force(loss)),
        )
        self.step += 1
        if self.reference is not None and rl.reference_refresh_steps and self.step % rl.reference_refresh_steps == 0:
            self.context.ranks.pulse.safe.withdraw()  # the update before may have been skipped
            self.reference.refresh(self.policy)
        update_s = time.perf_counter() - start
        all_sums = self.context.ranks.reduce(sums)
        values = {**ratios(all_sums), **ratios(update_sums), "lr": rate, **self.guard.figures()}
        values |= {**minibatch.figures, **times, "time/update_s": update_s, "time/save_s": self.progress.take_save_s()}
        if "logp_gap_max" in values:
            values["rollout_ratio_max"] = max_ratio(values["logp_gap_max"])
        if "length" in values:
            values["time/tokens_per_s"] = all_sums["length_sum"] / times["time/rollout_s"]
        if rl.dev_every_steps and (self.step % rl.dev_every_steps == 0 or self.step == rl.steps):
            values |= self._dev_evaluation()
            values |= self.best.offer(self.step, self.last_dev, self.policy.saver)
        self.context.log(self.stage, self.step, values)
        self.history.append(values)
        if self.step % DIAGNOSE_EVERY_STEPS == 0:
            max_grad_norm = at(self.config.optimizer.max_grad_norm, self.step)
            for reason in why_stalled(self.history, max_grad_norm=max_grad_norm):
                if reason.split(":")[0] not in self.warned:
                    self.context.console.warn(reason)
                    self.warned.add(reason.split(":")[0])

    def _collect_or_stop(self) -> tuple[list[ScoredRollout], list[ScoredRollout]]:
        """`_collect`; SIGTERM ends it at once, because it may take longer than a launcher waits.

        Not with several processes: one that stops alone would leave the others waiting for it.
        """
        before = self.cursor, self.general_cursor
        alone = self.context.ranks.world_size == 1
        try:
            with self.context.stop.interruptible() if alone else nullcontext():
                return self._collect()
        except Stopped:
            self.cursor, self.general_cursor = before
            if self.progress.saved_step != self.step:
                self.progress.save(self.step, self._state(self._positions()))
            raise

    def _collect(self) -> tuple[list[ScoredRollout], list[ScoredRollout]]:
        """Whole groups of this rank, with advantages: those to train on, and all that were drawn.

        Groups without variance are replaced if the recipe asks.
        """
        rl = self.config.rl
        wanted = rl.updates_per_rollout * at(rl.prompts_per_step, self.step)
        wanted_general = rl.updates_per_rollout * at(rl.general_prompts_per_step, self.step)
        num_groups = wanted + wanted_general
        kept: list[ScoredRollout] = []
        drawn: list[ScoredRollout] = []
        self.places = {}
        for _ in range(MAX_REFILLS if rl.zero_variance == "refill" else 1):
            prompts = self.prompts.take(self.cursor, wanted)
            self.cursor += wanted
            if self.general is not None and wanted_general:
                prompts = prompts + self.general.take(self.general_cursor, wanted_general)
                self.general_cursor += wanted_general
            # where an epoch ends a prompt may come twice: it is sampled once, both would get the same samples
            distinct = each_once(prompts)
            self.places |= {prompt.id: len(self.places) + number for number, prompt in enumerate(distinct)}
            scored = self._sample(self.context.ranks.shard(distinct))
            drawn += scored
            if rl.zero_variance != "refill":
                return scored, drawn
            kept += with_variance(scored, rl.group_size)
            found = self.context.ranks.reduce({"groups_sum": len(kept) / rl.group_size})["groups_sum"]
            if found >= num_groups:
                break
            missing = round(num_groups - found)
            wanted, wanted_general = (missing, 0) if wanted else (0, missing)
        return (kept if found else scored), drawn  # all ranks the same

    def _sample(self, prompts: list[Prompt]) -> list[ScoredRollout]:
        rl = self.config.rl
        sampling = Sampling(
            temperature=self.temperature,
            top_p=at(rl.top_p, self.step),
            max_tokens=at(rl.max_tokens, self.step),
            stage=self.stage,
            visit=self.cursor + self.general_cursor,
        )
        groups = self.engine.groups(prompts, rl.group_size, sampling)
        scored = self.scorer.score_groups(prompts, groups, self.step)
        if not scored:
            return []
        rewards = torch.tensor([item.reward for item in scored], dtype=torch.float64)
        group = torch.arange(len(prompts)).repeat_interleave(rl.group_size)
        advantages = group_advantage(rewards, group, baseline=rl.baseline, scale=rl.advantage_scale)
        return [replace(item, advantage=value) for item, value in zip(scored, advantages.tolist(), strict=True)]

    def _minibatches(self, scored: Seq[ScoredRollout]) -> list[Minibatch]:
        """This rank's share of the mini-batches, one per optimizer step, into which all ranks' rollout is split."""
        packing = Packing(
            micro_batch_tokens=self.config.optimizer.micro_batch_tokens,
            num_vocab=self.policy.num_vocab,
            # on CUDA varlen_attn runs whole sequences; slices have no parents
            share_prompts=self.policy.device.type == "cpu" and self.ranks.sequence_parallel == 1,
            skip=self.config.rl.zero_variance == "skip",
        )
        key = f"minibatches {self.stage} {self.config.run.seed} {self.step}"
        updates = self.config.rl.updates_per_rollout
        return split_rollout(scored, self.places, updates, key, packing, self.ranks)

    def _score(self, policy: Policy, batches: list[Batch]) -> list[torch.Tensor]:
        beat = self.context.ranks.pulse.beat
        return score(policy, batches, temperature=self.temperature, logprobs=self.logprobs, beat=beat)

    def _temperature(self) -> float:
        return at(self.config.rl.temperature, self.step)

    def _weights(self) -> RewardWeights:
        """Those of the stage but of rewards of models that weigh nothing in it: `_model_rewards` does not load them."""
        idle = set(MODEL_REWARDS) - self.config.active_rewards()
        tables = self.config.rewards.items()
        return {kind: {name: table[name] for name in table if name not in idle} for kind, table in tables}

    def _model_rewards(self) -> dict[str, ModelReward]:
        names = self.config.active_rewards()
        rewards: dict[str, ModelReward] = dict(
            load_model_rewards(self.context, names, idles=self.config.optimizer.offload_idle_models)
        )
        if "judge" in names:
            self.judge = Judge(self.config.judge, self.ranks.pulse.beat)
            rewards["judge"] = self.judge.grade
        return rewards

    def _dev_evaluation(self) -> dict[str, float]:
        if not self.config.rl.dev_every_steps or not self.dev:
            return {}
        start = time.perf_counter()
        self._before_generating()
        self.last_dev = dev_reading(self.context, self.engine, self.dev, self.config)
        self._after_generating()
        return {**self.last_dev, "time/dev_s": time.perf_counter() - start}

    def _write_samples(self, scored: Seq[ScoredRollout]) -> None:
        count = self.config.run.samples_per_step
        if self.context.ranks.rank == 0 and count:
            chosen = pick_groups(scored, group_size=self.config.rl.group_size, num_samples=count, turn=self.step)
            self.context.write_samples(self.stage, self.step + 1, chosen, self.policy.tokenizer)

    def _positions(self) -> dict[str, Any]:
        """What a rollout that is under way changes, or a step that is skipped."""
        return {
            "cursor": self.cursor,
            "general_cursor": self.general_cursor,
            "last_dev": self.last_dev,
            "warned": sorted(self.warned),
            "logp_gap": self.gap.state_dict(),
            "guard": self.guard.state_dict(),
        }

    def _state(self, positions: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the next rollout and the stage's result depend on; the tensors are the live ones."""
        reference = self.reference.state_dict() if self.reference is not None else {}
        return {**positions, "trainer": self.trainer.state_dict(), "reference": reference}

    def _resume(self) -> bool:
        """Whether there was a state to continue from."""
        state = self.progress.resume()
        if state is None:
            return False
        self.step, self.cursor, self.general_cursor = state["step"], state["cursor"], state["general_cursor"]
        self.trainer.load_state_dict(state["trainer"])
        if self.reference is not None:
            self.reference.load_state_dict(state["reference"])
        self.last_dev, self.warned = state["last_dev"], set(state["warned"])
        self.gap.load_state_dict(state["logp_gap"])
        self.guard.load_state_dict(state["guard"])
        self.history.extend(self.context.logged(self.stage))
        return True


def with_variance(scored: Seq[ScoredRollout], group_size: int) -> list[ScoredRollout]:
    """The groups, whole, in which some reward differs; one sample of such a group may have advantage 0."""
    groups = [scored[start : start + group_size] for start in range(0, len(scored), group_size)]
    return [item for group in groups if any(item.advantage != 0.0 for item in group) for item in group]
