"""A run small enough for a test: random two-layer models with the tiny tokenizer, scripted completions."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from r1fast.config import Config
from r1fast.context import RunContext
from r1fast.distributed import Ranks
from r1fast.options import parse
from r1fast.records import Prompt, Rollout, ScoredRollout
from r1fast.rewards import REWARDS, Score
from r1fast.sampling import Sampling
from r1fast.scorer import written
from r1fast.start import open_run
from r1fast.tiny.pretrain import Size, build_model
from r1fast.tiny.tokenizer import build_tokenizer

SMALL = Size(layers=2, hidden=64, steps=10, lr=1e-2)


def save_model(directory: Path, seed: int = 0) -> Path:
    """A random model as a Hugging Face checkpoint; its completions are random words."""
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    build_model(SMALL, tokenizer).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def tiny_config(model: Path, **options: Any) -> Config:
    """Recipe `smoke` on `model` (also as the student), with `section__key=value` changes; a stage's are named alike."""
    words = [
        "--recipe",
        "smoke",
        "--run.tensorboard",
        "false",
        "--rl.max_tokens",
        "12",
        "--evaluation.max_tokens",
        "12",
    ]
    for name, value in options.items():
        words += [f"--{name.replace('__', '.')}", str(value)]
    config = parse(words).config
    # set here: the command line refuses the tiny world's data for models that are not the embedded ones
    return replace(config, model=replace(config.model, path=str(model), student=str(model)))


def open_context(config: Config, run_dir: Path) -> RunContext:
    return open_run(config, run_dir, Ranks())


def math_prompt(name: str = "q", *, answer: str = "7", language: str = "en", **fields: Any) -> Prompt:
    text = "tom has 3 apples . gains 4 . how many apples ?"
    return Prompt(id=name, text=text, token_ids=(), language=language, answer=answer, **fields)


def scored(prompt: Prompt, text: str, **parts: float) -> ScoredRollout:
    """A completion with the verdicts of the real rule rewards, unless `parts` says otherwise."""
    rollout = written(prompt, text)
    verdicts: dict[str, float] = {}
    for name in ("accuracy", "format"):
        score = REWARDS[name](prompt, rollout)
        assert isinstance(score, Score)
        verdicts[name] = score.value
    verdicts |= parts
    return ScoredRollout(rollout=rollout, reward=verdicts["accuracy"], parts=verdicts, outcome="ok")


class ScriptedEngine:
    """In place of `make_engine` and its engine: what `script` returns for a prompt and a number."""

    draft_tokens = 0

    def __init__(self, script: Callable[[Prompt, int], str]) -> None:
        self.script = script
        self.calls: list[tuple[list[str], int, Sampling]] = []

    def __call__(self, policy: object, config: Config, beat: object = None) -> ScriptedEngine:
        self.rows = config.rollout.rows
        return self

    def generate(self, prompts: list[Prompt], group_size: int, sampling: Sampling) -> list[Rollout]:
        return [rollout for group in self.groups(prompts, group_size, sampling) for rollout in group]

    def groups(
        self, prompts: list[Prompt], group_size: int, sampling: Sampling
    ) -> Generator[list[Rollout], None, None]:
        ids = [prompt.id for prompt in prompts]
        assert len(set(ids)) == len(ids), "the engines refuse an id that comes twice in a call"
        self.calls.append((ids, group_size, sampling))
        for prompt in prompts:
            yield [written(prompt, self.script(prompt, n)) for n in range(group_size)]


def without_times(lines: list[dict[str, Any]]) -> list[Mapping[str, Any]]:
    """Metrics that must not differ between two identical runs."""
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]
