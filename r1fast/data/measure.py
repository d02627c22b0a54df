"""Pass rates of a base model: samples of every training prompt, scored, written part by part."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1fast.atomic import atomic_file, whole_lines
from r1fast.checks import STUDENT_STAGES
from r1fast.config import RL_STAGES, Config, user_input
from r1fast.context import load_model, local_device
from r1fast.data.difficulty import question_key, read_pass_rates
from r1fast.data.prompts import each_once, varieties
from r1fast.records import Prompt
from r1fast.rollout.backend import make_engine, release
from r1fast.sampling import Sampling
from r1fast.schedule import at
from r1fast.scorer import Scorer
from r1fast.start import open_source
from r1fast.templates import write_prompts


def measure_difficulty(config: Config, out: Path, *, samples: int, num_prompts: int = 0) -> list[float]:
    """The pass rate of each of the first `num_prompts` training prompts (0: all), in their order.

    Samples as the first RL stage would from the model that it starts from in the end: with its template, [rl] and
    [rollout]. Lines are appended to `out` after every decode batch; prompts that it has already are not sampled again.
    Raises ConfigError for input that cannot be used, rates in `out` of another model or sampling included.
    """
    stage = next((name for name in config.pipeline.stages if name in RL_STAGES), None)
    view = config.for_stage(stage) if stage else config
    with user_input():
        if samples < 1:
            raise ValueError(f"--samples {samples} must be at least 1")
        root = "student" if stage in STUDENT_STAGES else "base"
        sampling = Sampling(
            temperature=at(view.rl.temperature, 0),
            top_p=at(view.rl.top_p, 0),
            max_tokens=at(view.rl.max_tokens, 0),
            stage="difficulty",
            visit=0,
        )
        measured = {
            "model": config.model.student if root == "student" else config.model.path,
            "samples": samples,
            **{name: getattr(sampling, name) for name in ("temperature", "top_p", "max_tokens")},
        }
        prompts = open_source(config).prompts("train")
        prompts = prompts[:num_prompts] if num_prompts else prompts
        known = _known_rates(out, measured) if out.exists() else {}
    missing = each_once(prompt for prompt in prompts if question_key(prompt.text) not in known)
    if missing:
        policy = load_model(config, Path(config.run.dir).expanduser(), root, local_device(config), stage=stage)
        engine = make_engine(policy, view)
        scorer = Scorer({prompt.kind: {"accuracy": 1.0} for prompt in varieties(prompts)})
        size = max(1, view.rollout.rows // samples)
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            _drop_torn_line(out)
        try:
            for start in range(0, len(missing), size):
                part = write_prompts(missing[start : start + size], policy.tokenizer)
                rewards = [item.reward for item in scorer.score(engine.generate(part, samples, sampling))]
                rates = [sum(rewards[n : n + samples]) / samples for n in range(0, len(rewards), samples)]
                _append(out, part, rates, measured)
                known |= {question_key(prompt.text): rate for prompt, rate in zip(part, rates, strict=True)}
        finally:
            release(engine)
            scorer.close()
    return [known[question_key(prompt.text)] for prompt in prompts]


def _drop_torn_line(path: Path) -> None:
    """A line that a kill has torn would spoil the next one; a kill here leaves the file as it was."""
    lines = whole_lines(path)
    with atomic_file(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def _known_rates(path: Path, measured: Mapping[str, Any]) -> dict[int, float]:
    """The pass rates of a file that goes on; ValueError for one that was measured otherwise, or does not say how."""
    rates = read_pass_rates(path)
    for number, line in enumerate(whole_lines(path), start=1):
        row = json.loads(line)
        for name, value in measured.items():
            if row.get(name) != value:
                was = f"{name} = {row[name]!r}" if name in row else f"no {name}"
                raise ValueError(
                    f"{path}, line {number}: its pass rate has {was}, and this measurement {name} = {value!r}; give "
                    "another --out"
                )
    return rates


def _append(path: Path, prompts: Sequence[Prompt], rates: Sequence[float], measured: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        for prompt, rate in zip(prompts, rates, strict=True):
            row = {"prompt": prompt.text, "pass_rate": rate, **measured}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
