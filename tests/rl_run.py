"""A GRPO stage of a random model for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_run import open_context, tiny_config

from r1fast.config import Config
from r1fast.records import Prompt
from r1fast.stages.rl import RLLoop


def rl_config(model: Path, **options: Any) -> Config:
    """A random model is never right; the share of words in the question's language gives it something to learn."""
    config = tiny_config(
        model,
        **{
            "stages__r1_zero__steps": 4,
            "rl__lr": 1e-2,
            "rl__dev_every_steps": 2,
            "rl__dev_problems": 2,
            "rl__reference_refresh_steps": 3,
            "rewards__math__language_any": 1.0,
            "data__num_train": 64,
            "run__save_every_steps": 2,
            **options,
        },
    )
    return config


def loop(config: Config, directory: Path) -> RLLoop:
    looped = RLLoop(open_context(config, directory), "r1_zero")
    looped.context.console.stage_start("r1_zero", 4)
    return looped


def text_of(prompt: Prompt, number: int) -> str:
    return f"<think> first </think> <answer> {prompt.answer if number % 2 else 'none'} </answer>"
