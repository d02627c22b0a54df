"""Rewriting of cold-start chains: what comes back is judged anew; by a real server, and by the base model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template

import pytest
from servers import judge_server
from tiny_run import ScriptedEngine, math_prompt, open_context, save_model, scored, tiny_config

from r1fast.config import ConfigError, JudgeConfig
from r1fast.context import RunContext
from r1fast.options import parse
from r1fast.records import Prompt
from r1fast.rewards.endpoint import Endpoint
from r1fast.rewards.response import parse_response
from r1fast.rewrite_instruction import PROMPT
from r1fast.scorer import Scorer
from r1fast.stages import cold_start, rewrite
from r1fast.stages.cold_start import run_cold_start
from r1fast.stages.rewrite import Rewriting, _server, make_rewriting
from r1fast.stages.sft import read_examples
from r1fast.weight_sharing import shares_weights

SAMPLE = "<think> first add 3 + 4 = 7 . </think> <answer> 7 </answer>"
port = pytest.fixture(scope="module")(judge_server)


def config_of(port: int) -> JudgeConfig:
    return JudgeConfig(endpoint=f"http://127.0.0.1:{port}/v1", model="judge-1", timeout_s=15.0, retries=0)


def review(write: rewrite.Writer, prompts: Sequence[Prompt], max_per_prompt: int = 1) -> list[tuple[str, str]]:
    """Of one right sample of each prompt."""
    rewriting = Rewriting(
        write=write, endpoint=None, instruction=Template(PROMPT), min_language=0.9, max_per_prompt=max_per_prompt
    )
    items = [scored(prompt, SAMPLE) for prompt in prompts]
    scorer = Scorer({"math": {"accuracy": 1.0, "format": 0.0}})
    try:
        return rewriting(items, [("kept", "as it was")] * len(items), scorer)
    finally:
        scorer.close()


def asked(case: str) -> Prompt:
    prompt = math_prompt(case)
    return replace(prompt, text=f"case:{case} {prompt.text}", metadata={"response_prefix": ""})


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ("faithful", "kept"),
        ("corrects", "rewritten wrong"),
        ("chats", "rewritten in another form"),
        ("translates", "mixed language"),
        ("loops", "repetition"),
        ("forbidden", "not rewritten"),
    ],
)
def test_what_a_server_writes_is_judged_anew(port: int, case: str, verdict: str) -> None:
    ((found, text),) = review(_server(Endpoint(config_of(port))), [asked(case)])
    assert found == verdict
    assert bool(text) == (verdict == "kept")
    if text:
        assert text == "<think>\nread again : first add 3 + 4 = 7 .\n</think>\nso it is \\boxed{7}"


def test_only_what_is_needed_is_rewritten() -> None:
    given: list[str] = []

    def write(prompts: Sequence[Prompt]) -> list[str]:
        given.extend(prompt.text for prompt in prompts)
        return [f"<think>\nfirst number {n}\n</think>\n\\boxed{{7}}" for n in range(len(prompts))]

    prompts = [math_prompt("a"), math_prompt("a"), replace(math_prompt("b", language="zh"), text="other")]
    verdicts = [verdict for verdict, _ in review(write, prompts)]
    assert verdicts == ["kept", "enough of this prompt", "mixed language"]
    assert len(given) == 2 and SAMPLE in given[0]
    assert "all of it in English" in given[0] and "all of it in Chinese" in given[1]


def test_a_prefix_of_the_template_is_not_doubled() -> None:
    prompt = replace(math_prompt(), metadata={"response_prefix": "<think>"})
    reply = "<think>\nfirst add\n</think>\n\\boxed{7}"
    items = [scored(prompt, SAMPLE.removeprefix("<think>"))]
    rewriting = Rewriting(
        write=lambda prompts: [reply for _ in prompts],
        endpoint=None,
        instruction=Template("$question $response $language"),
        min_language=0.0,
        max_per_prompt=1,
    )
    scorer = Scorer({"math": {"accuracy": 1.0, "format": 0.0}})
    assert rewriting(items, [("kept", "")], scorer) == [("kept", reply)]
    scorer.close()


def test_without_a_least_share_a_language_that_nothing_tells_is_kept() -> None:
    reply = "<think>\nprimeiro somo\n</think>\n\\boxed{7}"
    rewriting = Rewriting(
        write=lambda prompts: [reply for _ in prompts],
        endpoint=None,
        instruction=Template(PROMPT),
        min_language=0.0,
        max_per_prompt=1,
    )
    scorer = Scorer({"math": {"accuracy": 1.0, "format": 0.0}})
    assert rewriting([scored(math_prompt(language="pt"), SAMPLE)], [("kept", "")], scorer) == [("kept", reply)]
    scorer.close()


def run_stage(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> tuple[RunContext, dict[str, float]]:
    config = tiny_config(save_model(folder / "model"), cold_start__prompts=6, **options)
    sampled = ScriptedEngine(lambda prompt, _: f"<think> first add . </think> <answer> {prompt.answer} </answer>")
    monkeypatch.setattr(cold_start, "make_engine", sampled)
    with open_context(config, folder / "run") as context:
        save_model(context.directory("r1_zero") / "checkpoint")
        return context, run_cold_start(context, "cold_start")


def test_the_stage_asks_a_server_and_counts_its_cost(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(port)
    context, result = run_stage(
        tmp_path,
        monkeypatch,
        cold_start__rewrite="endpoint",
        judge__endpoint=config.endpoint,
        judge__model=config.model,
        judge__prompt_price=1.0,
    )
    assert (result["yield/kept"], result["yield/enough of this prompt"]) == (6, 18)
    assert result["judge/calls_count"] == 6 and result["judge/cost_count"] > 0
    examples = read_examples(context.directory("cold_start") / "examples.jsonl")
    assert all(example.response.startswith("<think>\nread again : first add") for example in examples)


def test_the_base_model_rewrites_in_its_own_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted: the tiny model follows no instructions, so the command line refuses it for this."""
    answers: dict[str, str] = {}

    def script(prompt: Prompt, number: int) -> str:
        assert prompt.token_ids  # written in a template
        question = prompt.text.partition("[Question]\n")[2].partition("\n")[0]
        return f"<think> read again first </think> \\boxed{{ {answers[question]} }}"

    writing = ScriptedEngine(script)
    monkeypatch.setattr(rewrite, "make_engine", writing)
    original = cold_start.make_rewriting

    def by_model(context: RunContext, config: object) -> Rewriting | None:
        answers.update({prompt.text: prompt.answer for prompt in context.source.prompts("train")})
        view = context.config.for_stage("cold_start")
        return original(context, replace(view, cold_start=replace(view.cold_start, rewrite="model")))

    monkeypatch.setattr(cold_start, "make_rewriting", by_model)
    context, result = run_stage(tmp_path, monkeypatch)
    assert result["yield/kept"] == 6
    (_, group_size, sampling) = writing.calls[0]
    assert (group_size, sampling.temperature) == (1, 0.0)
    examples = read_examples(context.directory("cold_start") / "examples.jsonl")
    assert {parse_response(example.response).pattern for example in examples} == {"readable"}


def test_the_model_that_rewrites_is_whole_whatever_supervised_stages_have(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    config = tiny_config(save_model(tmp_path / "model"), distributed__engine="deepspeed", distributed__zero_stage=3)
    assert shares_weights(config, "sft_1") and not shares_weights(config, "cold_start")
    with open_context(config, tmp_path / "run") as context:
        view = config.for_stage("cold_start")
        view = replace(view, cold_start=replace(view.cold_start, rewrite="model", max_tokens=4))
        rewriting = make_rewriting(context, view)
        assert rewriting is not None
        prompt = Prompt(id="a", text="tom has 3 apples . how many ?", token_ids=())
        assert len(rewriting.write([prompt])) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--cold_start.rewrite endpoint", "judge.endpoint = '' and judge.model = '': give both"),
        ("--cold_start.rewrite model", "tiny's do not"),
        ("--cold_start.rewrite_prompt a.txt", "asks no model: leave it out"),
        ("--cold_start.rewrite endpoint --judge.endpoint ftp://a --judge.model m", "must be like https://host:port/v1"),
        ("--rejection.min_grade 0.5", "a judge needs both"),
    ],
)
def test_what_cannot_rewrite_or_grade_is_refused(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(words.split())
