"""Prompts in a language that nothing here tells are refused where a reward or a filter would have to tell it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import math_prompt

from r1fast.config import Config, ConfigError
from r1fast.language_checks import check_languages
from r1fast.options import parse
from r1fast.preflight import check_source
from r1fast.start import open_source

KNOWN = "en, es, fr, de, zh, ja, ru, ar"


def config_of(*words: str) -> Config:
    return parse(["--recipe", "smoke", *words]).config


@pytest.mark.parametrize(
    ("stage", "words", "message"),
    [
        ("r1_zero", ("--rewards.math.language", "0"), f"reward rewards.math.language knows only {KNOWN}; drop that"),
        (
            "cold_start",
            ("--cold_start.min_language", "0.5"),
            f"cold_start.min_language = 0.5 counts words of {KNOWN} only; set it to 0, or drop such prompts",
        ),
        ("rejection", ("--rejection.min_language", "0.9"), "rejection.min_language = 0.9 counts words of"),
    ],
)
def test_what_cannot_tell_a_language_refuses_its_prompts(stage: str, words: tuple[str, ...], message: str) -> None:
    view = config_of(*words).for_stage(stage)
    with pytest.raises(ConfigError, match=re.escape("prompt 'q' is in language 'pt', and ") + ".*" + message):
        check_languages(view, stage, [math_prompt("a"), math_prompt(language="pt")])
    check_languages(view, stage, [math_prompt(language="zh")])


def test_also_as_the_lenient_metric() -> None:
    config = replace(config_of(), rewards={"math": {"accuracy": 1.0, "language_any": 0.0}})
    with pytest.raises(ConfigError, match=r"the reward rewards\.math\.language_any knows only en"):
        check_languages(config, "r1_zero", [math_prompt(language="pt")])


def test_without_them_any_language_may_be() -> None:
    prompts = [math_prompt(language="pt")]
    off = config_of("--cold_start.min_language", "0", "--rejection.min_language", "0")
    for stage in ("cold_start", "rejection"):
        check_languages(off.for_stage(stage), stage, prompts)
    strict = config_of("--rewards.math.language", "1", "--rejection.min_language", "0.9")
    check_languages(strict, "sft_1", prompts)  # which neither rewards nor filters


def test_the_start_asks_the_stages_that_filter(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    rows = [{"prompt": f"quanto é {n} + 1?", "answer": n + 1, "language": "pt"} for n in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = ("--model", str(tmp_path), "--data", str(file), "--data.num_dev", "8", "--data.num_held_out", "8")
    stages = ("--pipeline.stages", "r1_zero,cold_start", "--rl.dev_problems", "8")
    config = parse([*data, *stages, "--cold_start.min_language", "0.5"]).config
    with pytest.raises(ConfigError, match=r"cold_start\.min_language = 0\.5"):
        check_source(config, open_source(config), ["cold_start"])
    config = parse([*data, *stages]).config
    check_source(config, open_source(config), ["cold_start"])
