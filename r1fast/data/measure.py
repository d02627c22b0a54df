"""Pass rates of a base model: samples of every training prompt, scored, written part by part."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from r1fast.atomic import whole_lines
from r1fast.config import Config, user_input
from r1fast.context import load_model, local_device
from r1fast.data.difficulty import question_key, read_pass_rates
from r1fast.data.prompts import varieties
from r1fast.records import Prompt
from r1fast.rollout.backend import make_engine, release
from r1fast.sampling import Sampling
from r1fast.schedule import at
from r1fast.scorer import Scorer
from r1fast.start import open_source
from r1fast.templates import write_prompts


def measure_difficulty(config: Config, out: Path, *, samples: int, num_prompts: int = 0) -> list[float]:
    """The pass rate of each of the first `num_prompts` training prompts (0: all), in their order.

    Samples as the first RL stage would: its template, temperature and limit. Lines are appended to `out` after every
    decode batch; prompts that it has already are not sampled again. Raises ConfigError for input that cannot be used.
    """
    with user_input():
        if samples < 1:
            raise ValueError(f"--samples {samples} must be at least 1")
        prompts = open_source(config).prompts("train")
        prompts = prompts[:num_prompts] if num_prompts else prompts
        known = read_pass_rates(out) if out.exists() else {}
    missing = [prompt for prompt in prompts if question_key(prompt.text) not in known]
    if missing:
        policy = load_model(config, Path(config.run.dir), "base", local_device(config))
        engine = make_engine(policy, config)
        scorer = Scorer({prompt.kind: {"accuracy": 1.0} for prompt in varieties(prompts)})
        size = max(1, config.rollout.rows // samples)
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():  # a line that a kill has torn would spoil the next one
            out.write_text("".join(f"{line}\n" for line in whole_lines(out)), encoding="utf-8")
        sampling = Sampling(
            temperature=at(config.rl.temperature, 0),
            max_tokens=at(config.rl.max_tokens, 0),
            stage="difficulty",
            visit=0,
        )
        try:
            for start in range(0, len(missing), size):
                part = write_prompts(missing[start : start + size], policy.tokenizer)
                rewards = [item.reward for item in scorer.score(engine.generate(part, samples, sampling))]
                rates = [sum(rewards[n : n + samples]) / samples for n in range(0, len(rewards), samples)]
                _append(out, part, rates, samples)
                known |= {question_key(prompt.text): rate for prompt, rate in zip(part, rates, strict=True)}
        finally:
            release(engine)
            scorer.close()
    return [known[question_key(prompt.text)] for prompt in prompts]


def _append(path: Path, prompts: Sequence[Prompt], rates: Sequence[float], samples: int) -> None:
    with path.open("a", encoding="utf-8") as file:
        for prompt, rate in zip(prompts, rates, strict=True):
            row = {"prompt": prompt.text, "pass_rate": rate, "samples": samples}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
