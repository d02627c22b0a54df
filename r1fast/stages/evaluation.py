"""The closing evaluation: every model of the run on the held-out problems, and paired differences between them."""

from __future__ import annotations

import time
from typing import Any

from r1fast.config import Config
from r1fast.context import ROWS, RunContext, write_json, write_lines
from r1fast.evaluate import Reading, read_general, read_model
from r1fast.intervals import paired_difference
from r1fast.policy import Policy
from r1fast.progress import Progress
from r1fast.rollout.backend import Engine, make_engine, release
from r1fast.samples import Decoder, sample_row
from r1fast.stages.reward_models import KINDS, load_model_rewards

# (first, second): the differences in pass@1 that the paper talks about.
PAIRS = (
    ("r1_zero", "base"),
    ("r1", "r1_zero"),
    ("r1", "base"),
    ("rl_1", "sft_1"),
    ("student_distilled", "student_rl"),
    ("student_distilled", "student_base"),
)
SAMPLES_KEPT = 64  # held-out problems whose first sample is kept for the report, one a model


def rows_of(stages: tuple[str, ...]) -> dict[str, str]:
    """The rows that a pipeline's table has: row -> where its model comes from."""
    student = {"distill", "student_rl"} & set(stages)
    present = {"base", *stages} | ({"student"} if student else set())
    return {row: origin for row, origin in ROWS.items() if origin in present}


def run_evaluation(context: RunContext, stage: str) -> dict[str, Any]:
    """Read every model; a model that was read before an interruption is not read again."""
    rows = rows_of(context.config.pipeline.stages)
    context.console.stage_start(stage, len(rows), f"{len(rows)} models")
    folder, progress = context.directory(stage), Progress(context, stage)
    table: dict[str, dict[str, Any]] = {}
    per_problem: dict[str, dict[str, float]] = {}
    for number, (row, origin) in enumerate(rows.items(), start=1):
        start = time.perf_counter()
        before = progress.part(f"reading-{row}")
        if before is not None:
            table[row], per_problem[row] = before["row"], before["per_problem"]
        else:
            with context.interruptible(stage):
                policy = context.load(origin, user=stage)
                reading = _read(context, policy, stage)
            tokenizer = policy.tokenizer
            del policy
            context.free()
            table[row], per_problem[row] = reading.row, reading.per_problem
            if context.ranks.rank == 0:
                write_lines(folder / f"samples-{row}.jsonl", sample_rows(reading, tokenizer))
                write_json(folder / f"reading-{row}.json", {"row": reading.row, "per_problem": reading.per_problem})
            progress.save_part(f"reading-{row}", {"row": reading.row, "per_problem": reading.per_problem})
        shown = ("pass@1", "accuracy_any", "format", "language", "tokens")
        values = {f"{row}/{key}": float(table[row][key]) for key in shown if table[row][key] is not None}
        context.log(stage, number, {**values, "time/evaluation_s": time.perf_counter() - start})
    pairs = {
        f"{first} - {second}": paired_difference(per_problem[first], per_problem[second])
        for first, second in PAIRS
        if first in table and second in table
    }
    if context.ranks.rank == 0:
        rows_out = [
            {"problem": key, **{row: values[key] for row, values in per_problem.items()}} for key in per_problem["base"]
        ]
        write_lines(folder / "per_problem.jsonl", rows_out)
    return {"eval": table, "pairs": pairs}


def _read(context: RunContext, policy: Policy, stage: str) -> Reading:
    config = context.config.for_stage(stage)
    engine = make_engine(policy, config, context.ranks)
    try:
        return _read_with(context, engine, policy, config, stage)
    finally:
        release(engine)


def _read_with(context: RunContext, engine: Engine, policy: Policy, config: Config, stage: str) -> Reading:
    options = config.evaluation
    problems = context.prompts(policy, context.source.prompts("held_out"))
    reading = read_model(
        context,
        engine,
        problems,
        samples_per_problem=options.samples_per_problem,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        name=stage,
    )
    general = context.source.general_prompts("held_out")
    reading.row.update({"refusal": None, "reward_model": None})
    if general:
        idles = context.config.for_stage("evaluation").optimizer.offload_idle_models
        rewards = load_model_rewards(context, KINDS, idles=idles) if context.result("reward_models") else {}
        written = context.prompts(policy, general)
        reading.row.update(read_general(context, engine, written, rewards=rewards, config=config))
    if not options.high_temperature_samples:
        return reading
    high = read_model(
        context,
        engine,
        problems,
        samples_per_problem=options.high_temperature_samples,
        temperature=options.high_temperature,
        top_p=1.0,
        max_tokens=options.max_tokens,
        name=f"{stage} high temperature",
    ).row
    kept = ("pass@1", "pass@1_ci", "accuracy_any", "format", "language", "mixed", "tokens", "k")
    reading.row["high_temperature"] = {"temperature": options.high_temperature, **{key: high[key] for key in kept}}
    return reading


def sample_rows(reading: Reading, tokenizer: Decoder) -> list[dict[str, Any]]:
    """The first sample of the first held-out problems, for people to read."""
    first: dict[str, dict[str, Any]] = {}
    for item in reading.samples:
        prompt = item.rollout.prompt
        if prompt.id not in first and len(first) < SAMPLES_KEPT:
            first[prompt.id] = {**sample_row(item, tokenizer), "right": item.parts["accuracy"]}
    return list(first.values())
