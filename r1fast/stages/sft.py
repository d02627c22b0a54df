"""Supervised fine-tuning: SFT 1 on the cold start's data, SFT 2 and distillation on the rejection-sampled set."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from r1fast.best_model import BestModel
from r1fast.config import Config, user_input
from r1fast.context import START, RunContext, read_lines
from r1fast.data.examples import read_messages
from r1fast.evaluate import dev_reading
from r1fast.kernels.grpo_loss import PolicyLoss
from r1fast.lora import add_adapters, save_trained
from r1fast.metrics import ratios
from r1fast.policy import Policy
from r1fast.progress import Progress
from r1fast.records import Prompt, Sequence
from r1fast.rollout.backend import make_engine, release
from r1fast.schedule import at, cosine, with_warmup
from r1fast.sequence_parallel import SequenceLogprobs
from r1fast.source import Example
from r1fast.stages.minibatches import Packing, own_share
from r1fast.step_dump import StepArguments, dumper
from r1fast.step_guard import StepGuard
from r1fast.stream import Stream, permutation
from r1fast.templates import write_answered
from r1fast.trainer import global_denominator
from r1fast.trainers import AnyTrainer, make_trainer

# Stage -> the stage whose examples.jsonl it learns from.
DATA = {"sft_1": "cold_start", "sft_2": "rejection", "distill": "rejection"}


def run_sft(context: RunContext, stage: str) -> dict[str, float]:
    """Train `stage`'s starting model on its examples and write its checkpoint."""
    config = context.config.for_stage(stage)
    with context.interruptible(stage):
        policy = context.load(START[stage], stage=stage)
        with user_input():
            add_adapters(policy, config.lora, f"{stage} adapters {config.run.seed}")
        sequences = encode_examples(stage_examples(context, stage), policy)
        ranks = context.ranks.in_sequence_groups(config.distributed.sequence_parallel)
        logprobs = SequenceLogprobs(ranks) if ranks.sequence_parallel > 1 else None
        trainer = make_trainer(policy, config, ranks, logprobs)
    steps = num_steps(config, len(sequences))
    stream = Stream(sequences, f"{stage} {config.run.seed}")
    num_vocab = policy.num_vocab
    packing = Packing(micro_batch_tokens=config.optimizer.micro_batch_tokens, num_vocab=num_vocab)
    progress, best, first_step = Progress(context, stage), BestModel(context, stage), 0
    guard = StepGuard(config.faults, stage, context.console.warn)
    saved = progress.resume()
    if saved is not None:
        first_step = saved["step"]
        trainer.load_state_dict(saved["trainer"])
        guard.load_state_dict(saved["guard"])
        del saved  # its file may be mapped
    context.console.stage_start(stage, steps, f"{len(sequences):,} examples", first_step=first_step)
    with context.stop.held(), context.ranks.pulse.during("training"):
        for step in range(first_step, steps):
            start = time.perf_counter()
            chosen = stream.take(step * config.sft.batch_size, config.sft.batch_size)
            own = own_share(chosen, packing, ranks)
            denominator = global_denominator("token_mean", own.batches, ranks)
            rate = learning_rate(config, step, steps)
            arguments = StepArguments(batches=own.batches, denominator=denominator, lr=rate)
            run = partial(trainer.step, **vars(arguments), loss=NLL)
            sums = guard.update(
                lambda most_norm, run=run: run(most_norm=most_norm),  # type: ignore[misc]
                step + 1,
                dumper(context, stage, step + 1, trainer, arguments, lambda: NLL),
            )
            elapsed = time.perf_counter() - start
            times = {"time/step_s": elapsed, "time/tokens_per_s": sums["tokens_count"] / elapsed}
            times["time/save_s"] = progress.take_save_s()
            if is_due(config, step + 1, steps):
                reading = read_dev(context, policy, config)
                times |= {**reading, **best.offer(step + 1, reading, policy.saver)}
            context.log(stage, step + 1, {**ratios(sums), "lr": rate, **guard.figures(), **own.figures, **times})
            state = partial(_state, trainer, guard.state_dict())
            progress.step_done(step + 1, state, alone=config.distributed.engine == "torch")
    save_trained(context, stage, policy, config.lora)
    return {"examples": len(sequences), "steps": steps}


def _state(trainer: AnyTrainer, guard: dict[str, Any]) -> dict[str, Any]:
    return {"trainer": trainer.state_dict(), "guard": guard}


def is_due(config: Config, step: int, steps: int) -> bool:
    """Whether dev is read after a step: every [sft] dev_every_steps, and after the last."""
    every = config.sft.dev_every_steps
    return bool(every) and (step % every == 0 or step == steps)


def read_dev(context: RunContext, policy: Policy, config: Config) -> dict[str, float]:
    """What `dev_reading` finds, and how long it took."""
    start = time.perf_counter()
    prompts = context.prompts(policy, context.source.prompts("dev")[: config.rl.dev_problems])
    engine = make_engine(policy, config, context.ranks)
    try:
        reading = dev_reading(context, engine, prompts, config)
    finally:
        release(engine)
    return {**reading, "time/dev_s": time.perf_counter() - start}


def stage_examples(context: RunContext, stage: str) -> list[Example]:
    """What the stage learns from: what an earlier one wrote, if it runs, general examples, and files of the user."""
    config = context.config.for_stage(stage)
    examples: list[Example] = []
    if DATA[stage] in config.pipeline.stages:
        examples = read_examples(context.directory(DATA[stage]) / "examples.jsonl")
    general = config.sft.general_share
    if general:
        count = round(len(examples) * general / (1 - general))
        examples += context.source.general_examples(count, config.run.seed)
    for file, weight in config.sft.files.items():
        examples += weighted(read_messages(file), weight, f"{file} {config.run.seed}")
    return examples


def weighted(examples: list[Example], weight: float, key: str) -> list[Example]:
    """Each example as often as `weight` says; of a fraction some of them, which `key` chooses."""
    whole, part = divmod(weight, 1.0)
    order = permutation(len(examples), key)
    chosen = sorted(order[number] for number in range(round(part * len(examples))))
    return examples * int(whole) + [examples[number] for number in chosen]


NLL = PolicyLoss(objective="nll", kl="none", kl_coef=0.0, aggregate="token_mean")


def num_steps(config: Config, num_examples: int) -> int:
    """[sft] steps, or as many as its epochs need."""
    return config.sft.steps or max(1, round(config.sft.epochs * num_examples / config.sft.batch_size))


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Warm-up, then cosine from `lr` to `lr_final`."""
    rate = cosine(at(config.sft.lr, step), at(config.sft.lr_final, step), step, steps)
    return with_warmup(rate, step, config.sft.warmup_steps)


def encode_examples(examples: list[Example], policy: Policy) -> list[Sequence]:
    """Prompt in the policy's template, then the response and an end token; loss on the response alone.

    Responses are whole: a `<think>` that the template writes is left out, see `r1fast.templates.continuation`.
    """
    prompts, responses = [example.prompt for example in examples], [example.response for example in examples]
    return [
        Sequence(
            token_ids=torch.tensor([*prompt_ids, *response_ids, policy.eos_token_ids[0]]),
            num_prompt_tokens=len(prompt_ids),
        )
        for prompt_ids, response_ids in write_answered(prompts, responses, policy.tokenizer)
    ]


PROMPT_KEYS = ("id", "kind", "language", "answer")


def read_examples(path: Path) -> list[Example]:
    """The examples that `write_examples` wrote."""
    return [
        Example(
            prompt=Prompt(token_ids=(), text=row["messages"][0]["content"], **{key: row[key] for key in PROMPT_KEYS}),
            response=row["messages"][1]["content"],
        )
        for row in read_lines(path)
    ]


def example_row(example: Example) -> dict[str, Any]:
    """One line of examples.jsonl: `messages` as other trainers read them, and what the prompt is beside its text."""
    messages = [
        {"role": "user", "content": example.prompt.text},
        {"role": "assistant", "content": example.response},
    ]
    return {"messages": messages, **{key: getattr(example.prompt, key) for key in PROMPT_KEYS}}
