"""What is wrong with a run, finished, running or dead, in sentences with figures; reads its files, changes nothing."""

from __future__ import annotations

import json
import shlex
import textwrap
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from r1fast.config import RL_STAGES, STAGES, Config
from r1fast.diagnosis import MIN_ROLLOUTS
from r1fast.doctor.learning import (
    Lines,
    read_evaluation,
    read_limit,
    read_reward_models,
    read_rl,
    read_sft,
    read_yield,
)
from r1fast.doctor.line import Line
from r1fast.failure import read_failure
from r1fast.metrics import METRICS_FILE, read_metrics
from r1fast.run_dir import lock_holder, open_config, stage_directory, unfinished_stages

SILENT_S = 900.0  # without a line of metrics, a run that should be running may hang
SAMPLED_FROM = {"cold_start": "r1_zero", "rejection": "rl_1"}  # stage -> the RL stage whose model it samples
MOST_OF_ERROR = 400  # characters of a message; failure.json has all of it


def check_run(run_dir: Path) -> Iterator[Line]:
    """The run's state, then what each of its stages shows.

    Raises:
        ConfigError: there is no run.
    """
    config = open_config(run_dir)
    return _check(config, run_dir)


def _check(config: Config, run_dir: Path) -> Iterator[Line]:
    try:
        metrics = read_metrics(run_dir) if (run_dir / METRICS_FILE).exists() else []
    except ValueError as error:
        yield Line(status="fail", name="metrics", value=str(error))
        return
    results = {stage: _result(run_dir, stage) for stage in config.pipeline.stages}
    by_stage: dict[str, Lines] = {
        stage: [line for line in metrics if line["stage"] == stage] for stage in config.pipeline.stages
    }
    left = list(unfinished_stages(config, run_dir))
    yield _state(config, run_dir, left, by_stage)
    for stage, lines in by_stage.items():
        view = config.for_stage(stage)
        if stage in SAMPLED_FROM:
            if results[stage] is not None or left[:1] == [stage]:
                yield from _sampling(stage, by_stage.get(SAMPLED_FROM[stage], []), results[stage], view)
        else:
            yield from _stage(stage, lines, results[stage], view)


def _state(config: Config, run_dir: Path, left: list[str], by_stage: Mapping[str, Lines]) -> Line:
    """Finished, running, or where and when it stopped."""
    stages = config.pipeline.stages
    if not left:
        return Line(status="ok", name="run", value=f"finished, {len(stages)} stage{'s' * (len(stages) > 1)}")
    stage = left[0]
    steps, done = num_steps(config, stage), max((line["step"] for line in by_stage[stage]), default=0)
    place = f"stage {stage} ({len(stages) - len(left) + 1} of {len(stages)})"
    if steps or done:
        place += f", after step {done}" + (f" of {steps}" if steps else "")
    metrics = run_dir / METRICS_FILE
    silent_s = time.time() - metrics.stat().st_mtime if metrics.exists() else 0.0
    holder = lock_holder(run_dir)
    if holder:
        value = f"running in process {holder}: {place}; last figures {ago(silent_s)} ago"
        if silent_s < SILENT_S:
            return Line(status="ok", name="run", value=value)
        return Line(status="warn", name="run", value=value, fix=f"does it still work? py-spy dump --pid {holder}")
    failure = read_failure(run_dir)
    if failure:
        first_line = textwrap.shorten(failure["error"].splitlines()[0], MOST_OF_ERROR, placeholder=" ...")
        value = f"died on {failure['time']} in {place}: {first_line} ({failure['where']})"
        return Line(status="fail", name="run", value=value, fix=f"repair the cause, then: {command(run_dir)}")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time.time() - silent_s))
    value = f"stopped in {place} without a message (SIGTERM, killed, out of memory); last figures {when}, "
    value += f"{ago(silent_s)} ago"
    return Line(status="fail", name="run", value=value, fix=f"it continues with: {command(run_dir)}")


def _stage(stage: str, lines: Lines, result: Mapping[str, Any] | None, view: Config) -> Iterator[Line]:
    if stage in RL_STAGES and lines:
        yield from read_rl(stage, lines, view)
    elif STAGES[stage] == "sft" and lines:
        yield from read_sft(stage, lines, result, view)
    elif stage == "reward_models" and lines:
        yield from read_reward_models(stage, lines, result)
    elif stage == "evaluation" and result is not None:
        yield from read_evaluation(stage, result.get("eval", {}))


def _sampling(stage: str, before: Lines, result: Mapping[str, Any] | None, view: Config) -> Iterator[Line]:
    """A stage that samples from the model of an RL stage, whose lines are `before`."""
    yield from read_limit(stage, getattr(view, stage).max_tokens, SAMPLED_FROM[stage], before)
    if result is not None:
        rollouts = sum(f"{SAMPLED_FROM[stage]}/reward" in line for line in before)
        yield read_yield(stage, result, judged=rollouts >= MIN_ROLLOUTS)


def num_steps(config: Config, stage: str) -> int:
    """Steps that a stage logs; 0 where its data decide."""
    view = config.for_stage(stage)
    if stage in RL_STAGES:
        return view.rl.steps
    if STAGES[stage] == "sft":
        return view.sft.steps
    return 2 * view.reward_model.steps if stage == "reward_models" else 0


def command(run_dir: Path) -> str:
    """What continues the run: the command it was started with, or its own configuration."""
    try:
        about = tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8")).get("about", {})
    except (OSError, ValueError):
        about = {}
    own = ["python", "-m", "r1fast.train", "--recipe", str(run_dir / "config.toml"), "--run.dir", str(run_dir)]
    return str(about.get("command") or shlex.join(own))


def ago(seconds: float) -> str:
    """How long, as a person says it."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _result(run_dir: Path, stage: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads((stage_directory(run_dir, stage) / "result.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
