"""The cold start's filters, one completion each, and the stage on scripted samples."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import ScriptedEngine, math_prompt, open_context, save_model, scored, tiny_config

from r1fast.context import RunContext, read_lines
from r1fast.records import Prompt
from r1fast.rewards.response import parse_response
from r1fast.stages import cold_start
from r1fast.stages.cold_start import judge, run_cold_start
from r1fast.stages.sft import read_examples

LOOP = "first add 3 + 4 = 7 . then "


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    folder = tmp_path_factory.mktemp("cold_start")
    config = tiny_config(save_model(folder / "model"))
    return open_context(config, folder / "run")


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("<think> first add 3 + 4 = 7 . </think> <answer> 7 </answer>", "kept"),
        ("<think> 首先 add 3 + 4 = 7 . </think> <answer> 7 </answer>", "kept"),  # the lexicon makes it readable
        ("<think> first add 3 + 4 = 8 . </think> <answer> 8 </answer>", "wrong"),
        ("the answer is 7 .", "wrong"),  # no answer where one is looked for
        ("first add 3 + 4 = 7 . <answer> 7 </answer>", "not formatted"),
        ("<think> first </think> <think> add </think> <answer> 7 </answer>", "not formatted"),
        (f"<think> {LOOP * 3} </think> <answer> 7 </answer>", "repetition"),
        ("<think> 3 + 4 = 7 </think> <answer> 7 </answer>", "mixed language"),  # no words to be in a language
        ("<think> 额外 first add 3 + 4 = 7 </think> <answer> 7 </answer>", "mixed language"),  # not in the lexicon
    ],
)
def test_verdicts(context: RunContext, text: str, verdict: str) -> None:
    found, example = judge(context, scored(math_prompt(), text), min_language=1.0)
    assert found == verdict
    assert (example is not None) == (verdict == "kept")


def test_min_language_is_the_least_share(context: RunContext) -> None:
    item = scored(math_prompt(), "<think> 额外 first add now </think> <answer> 7 </answer>")  # 3 of 4 words
    assert judge(context, item, 0.75)[0] == "kept"
    assert judge(context, item, 0.76)[0] == "mixed language"


def test_without_a_least_share_a_language_that_nothing_tells_is_kept(context: RunContext) -> None:
    item = scored(math_prompt(language="pt"), "<think> primeiro somo 3 e 4 . </think> <answer> 7 </answer>")
    assert judge(context, item, 0.0)[0] == "kept"
    numbers = scored(math_prompt(language="pt"), "<think> 3 + 4 = 7 </think> <answer> 7 </answer>")
    assert judge(context, numbers, 0.0)[0] == "mixed language"  # no words at all


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_kept_chain_is_rewritten_with_a_summary(context: RunContext, language: str) -> None:
    prompt = math_prompt(language=language)
    item = scored(prompt, "<think> 首先  add 3 + 4 = 7 . </think> <answer> 7 </answer>")
    _, example = judge(context, item, 1.0)
    assert example is not None and example.prompt == prompt
    response = parse_response(example.response)
    chain = {"en": " first add 3 + 4 = 7 . ", "zh": " 首先 加上 3 + 4 = 7 。 "}[language]
    assert (response.chain, response.pattern) == (chain, "readable")
    assert response.answer is not None and response.answer.strip() == "7"


def script(prompt: Prompt, number: int) -> str:
    """Two right samples of every prompt, one in a mixture, one wrong."""
    if number == 3:
        return "<think> first </think> <answer> 99999 </answer>"
    chain = "首先 add 3 ." if number == 2 else f"first add {number} ."
    return f"<think> {chain} </think> <answer> {prompt.answer} </answer>"


@pytest.mark.parametrize(
    ("max_per_prompt", "max_kept", "num_kept"), [(1, 256, 6), (2, 256, 12), (9, 256, 18), (9, 4, 4)]
)
def test_the_stage_writes_examples_and_reports_the_yield(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_per_prompt: int, max_kept: int, num_kept: int
) -> None:
    limits = {"cold_start__max_per_prompt": max_per_prompt, "cold_start__max_kept": max_kept}
    config = tiny_config(save_model(tmp_path / "model"), cold_start__prompts=6, **limits)
    engine = ScriptedEngine(script)
    monkeypatch.setattr(cold_start, "make_engine", engine)
    with open_context(config, tmp_path / "run") as context:
        save_model(context.directory("r1_zero") / "checkpoint")
        result = run_cold_start(context, "cold_start")
        path = context.directory("cold_start") / "examples.jsonl"
    assert result["examples"] == num_kept and result["samples"] == 24
    assert result["yield/wrong"] == 6 and result["yield/kept"] == min(6 * max_per_prompt, 18)
    assert result.get("yield/enough of this prompt", 0) == 18 - result["yield/kept"]
    assert len(read_lines(path)) == num_kept
    examples = read_examples(path)
    train = {prompt.id: prompt for prompt in context.source.prompts("train")[:6]}
    for example in examples:
        assert example.prompt == train[example.prompt.id]
        assert parse_response(example.response).pattern == "readable"
    assert engine.calls[0][1:][0] == 4 and engine.calls[0][2].stage == "cold_start"


def test_nothing_kept_is_an_error_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(save_model(tmp_path / "model"), cold_start__prompts=2)
    monkeypatch.setattr(cold_start, "make_engine", ScriptedEngine(lambda prompt, number: "no idea"))
    with open_context(config, tmp_path / "run") as context:
        save_model(context.directory("r1_zero") / "checkpoint")
        with pytest.raises(RuntimeError, match=r"kept none of 8 samples \(\{'wrong': 8\}\)"):
            run_cold_start(context, "cold_start")
