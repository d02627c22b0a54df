"""The pipeline: stages in order, each in its own directory, finished ones skipped, and the run's summary."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from r1fast.context import RunContext, write_json
from r1fast.evaluate import dev_reading
from r1fast.memory import PeakMemory
from r1fast.report.page import write_report
from r1fast.rollout.backend import make_engine, release
from r1fast.stages.cold_start import run_cold_start
from r1fast.stages.evaluation import run_evaluation
from r1fast.stages.rejection import run_rejection
from r1fast.stages.reward_models import run_reward_models
from r1fast.stages.rl import run_rl
from r1fast.stages.sft import run_sft

PACKAGES = ("r1fast", "torch", "transformers", "triton", "safetensors", "numpy")


def run_base(context: RunContext, stage: str) -> Mapping[str, Any]:
    """Load the base model, which checks it, and read it on dev."""
    config = context.config.for_stage(stage)
    context.console.stage_start(stage, 1, str(config.model.path))
    with context.interruptible(stage):
        policy = context.load("base", user=stage)
        engine = make_engine(policy, config, context.ranks)
        prompts = context.prompts(policy, context.source.prompts("dev")[: config.rl.dev_problems])
        try:
            values = dev_reading(context, engine, prompts, config)
        finally:
            release(engine)
    context.log(stage, 1, values)
    return {"parameters": policy.num_parameters, **values}


RUN: Mapping[str, Callable[[RunContext, str], Mapping[str, Any]]] = {
    "base": run_base,
    "r1_zero": run_rl,
    "cold_start": run_cold_start,
    "sft_1": run_sft,
    "rl_1": run_rl,
    "rejection": run_rejection,
    "sft_2": run_sft,
    "reward_models": run_reward_models,
    "rl_2": run_rl,
    "distill": run_sft,
    "student_rl": run_rl,
    "evaluation": run_evaluation,
}


def run_pipeline(context: RunContext) -> dict[str, Any]:
    """Run what is unfinished, in order; returns what `summary.json` holds.

    On SIGTERM a stage that still trains or samples stops; one that only has to write what it found is finished first.
    """
    leads = context.ranks.rank == 0
    with PeakMemory(record=context.run_dir / ".peak_pss_bytes" if leads else None) as memory:
        for stage in context.config.pipeline.stages:
            finished = context.result(stage) is not None
            if finished:
                context.console.note(f"{stage}: finished before, skipped")
            else:
                with context.stop.held():
                    _run_stage(context, stage)
            if leads:
                context.state_folder(stage).drop()  # for a finished one: what a kill right after its result has left
            if leads and not finished:
                write_json(context.run_dir / "summary.json", summary(context, memory.peak_bytes))
                write_page(context)
    whole = summary(context, memory.peak_bytes)
    if leads:
        write_json(context.run_dir / "summary.json", whole)
        write_page(context)
    return whole


def _run_stage(context: RunContext, stage: str) -> None:
    folder, start = context.state_folder(stage), time.perf_counter()
    earlier_s = folder.elapsed_s()
    if not folder.has_states():
        context.truncate(stage, 0)  # a stage that was interrupted before its first state starts again
    with context.writer.finishing():
        result = dict(RUN[stage](context, stage))
    context.ranks.pulse.safe.withdraw()  # the stage is done: there is nothing to go back to, or to keep
    context.free()
    result["wall_s"] = earlier_s + time.perf_counter() - start
    context.finish(stage, result)
    context.ranks.barrier()
    context.console.stage_end(shown(result))


def write_page(context: RunContext) -> None:
    """`report.html` of what is there so far."""
    try:
        write_report(context.run_dir)
    except Exception as error:  # whatever it is, a page is not worth a run: it is said, and the page can be made later
        context.console.warn(
            f"report.html was not written ({type(error).__name__}: {error}); the run goes on, and "
            f"`r1fast report {context.run_dir}` tries again"
        )


def shown(result: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a stage's result that fit its closing line."""
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    return {key: value for key, value in numbers.items() if key != "wall_s" and not key.startswith("yield/")}


def summary(context: RunContext, peak_bytes: int) -> dict[str, Any]:
    """What the finished stages found; `wall_s` is the sum of theirs, `peak_bytes` the largest of all launches."""
    stages = {stage: context.result(stage) for stage in context.config.pipeline.stages}
    done = {stage: result for stage, result in stages.items() if result is not None}
    closing = done.get("evaluation", {})
    return {
        "eval": closing.get("eval", {}),
        "pairs": closing.get("pairs", {}),
        "stages": {
            stage: {k: v for k, v in result.items() if k not in ("eval", "pairs")} for stage, result in done.items()
        },
        "wall_s": sum(result["wall_s"] for result in done.values()),
        "peak_pss_bytes": peak_bytes,
        "versions": versions(),
        "seed": context.config.run.seed,
        "world_size": context.ranks.world_size,
        "device": str(context.ranks.device),
    }


def versions() -> dict[str, str]:
    """Versions of what a result depends on, and the commit when run from a checkout."""
    found = {"python": platform.python_version(), "platform": sys.platform}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    commit = _commit()
    return {**found, "commit": commit} if commit else found


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        called = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return called.stdout.strip() if called.returncode == 0 else ""
