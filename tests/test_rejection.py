"""R1's filters of rejection sampling, one completion each, and the stage on scripted samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from servers import judge_server
from tiny_run import ScriptedEngine, math_prompt, open_context, save_model, scored, tiny_config

from r1fast import templates
from r1fast.config import Config, RejectionConfig
from r1fast.policy import Policy
from r1fast.records import Prompt
from r1fast.rewards.response import parse_response
from r1fast.stages import rejection
from r1fast.stages.rejection import reject, run_rejection
from r1fast.stages.sft import read_examples

OPTIONS = RejectionConfig(max_paragraph_tokens=12, min_language=0.75)
port = pytest.fixture(scope="module")(judge_server)
LOOP = "first add 3 + 4 = 7 . then "


def readable(chain: str, answer: str = "7") -> str:
    return f"<think> {chain} </think> the answer is \\boxed{{ {answer} }}"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    import torch

    return Policy.load(save_model(tmp_path_factory.mktemp("model")), device="cpu", dtype=torch.float32)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (readable("first add 3 + 4 = 7 ."), "kept"),
        ("<think> first add 3 + 4 = 7 . </think> <answer> 7 </answer>", "kept"),
        (readable("first add", "8"), "wrong"),
        ("first add 3 + 4 = 7 . \\boxed{ 7 }", "not formatted"),
        (readable("first add 3") + " and more", "not formatted"),
        (readable("首先 加上 now add 3"), "mixed language"),
        (readable("首先 then now add 3"), "kept"),  # three quarters, the limit
        (readable("3 + 4 = 7"), "mixed language"),
        (readable("first ```print(7)``` add"), "code block"),
        (readable("first add 1 add 2 add 3 add 4 add 5 add 6"), "long paragraph"),  # 13 tokens
        (readable("first add 1 " * 3 + "\n\n" + "then add 2 " * 3), "kept"),  # two paragraphs of 9
        (readable("first add\nimport math\nprint(math.pi)\nthen add"), "code block"),
        (readable("\n\n".join(["first add one two three four five six"] * 3)), "repetition"),
    ],
)
def test_verdicts(policy: Policy, text: str, verdict: str) -> None:
    assert reject(scored(math_prompt(), text), OPTIONS, policy) == verdict


def test_filters_that_are_off(policy: Policy) -> None:
    options = replace(OPTIONS, max_paragraph_tokens=0, drop_code_blocks=False, min_language=0.0)
    for text in (
        readable("first ```x``` add"),
        readable("first add 1 add 2 add 3 add 4 add 5 add 6"),
        readable("首先 加上 加上"),
    ):
        assert reject(scored(math_prompt(), text), options, policy) == "kept"
    unknown = scored(math_prompt(language="pt"), readable("primeiro somo 3 e 4 ."))
    assert reject(unknown, options, policy) == "kept"  # in a language that nothing here tells


def script(prompt: Prompt, number: int) -> str:
    chain = ("首先 加上" if prompt.language == "zh" else "first add") + f" {max(number, 1)} ."  # 0 and 1 are the same
    return readable(chain, "99999" if number == 3 else prompt.answer) + " "


def test_the_stage_writes_examples_and_general_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(
        save_model(tmp_path / "model"), rejection__prompts=6, rejection__max_per_prompt=2, rejection__general_share=0.25
    )
    engine = ScriptedEngine(script)
    monkeypatch.setattr(rejection, "make_engine", engine)
    with open_context(config, tmp_path / "run") as context:
        save_model(context.directory("rl_1") / "checkpoint")
        result = run_rejection(context, "rejection")
        examples = read_examples(context.directory("rejection") / "examples.jsonl")
        table = json.loads((context.directory("rejection") / "yield.json").read_text())
    assert set(table) == {"math en", "math zh"}
    for verdict, count in {"kept": 12, "duplicate": 6, "wrong": 6}.items():
        assert sum(counts[verdict] for counts in table.values()) == count
    assert result == {
        "examples": 16,  # 12 of mathematics, a quarter general
        "samples": 24,
        "yield/kept": 12,
        "yield/duplicate": 6,
        "yield/wrong": 6,
    }
    kinds = [example.prompt.kind for example in examples]
    assert kinds.count("math") == 12 and {*kinds} <= {"math", "general", "harmful"}
    assert engine.calls[0][0] == [prompt.id for prompt in context.source.prompts("train")[-6:]]
    assert all(example.response == example.response.strip() for example in examples)


def test_the_chain_that_a_template_opens_is_part_of_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student whose template opens nothing learns the whole response."""
    monkeypatch.setattr(templates, "TINY_CHAT", f"{templates.TINY_CHAT} <think>")
    options = {"rejection__prompts": 3, "rejection__max_per_prompt": 9, "rejection__general_share": 0.0}
    config = tiny_config(save_model(tmp_path / "model"), **options)
    engine = ScriptedEngine(lambda prompt, n: script(prompt, n).removeprefix("<think>"))
    monkeypatch.setattr(rejection, "make_engine", engine)
    with open_context(config, tmp_path / "run") as context:
        save_model(context.directory("rl_1") / "checkpoint")
        run_rejection(context, "rejection")
        examples = read_examples(context.directory("rejection") / "examples.jsonl")
    assert {parse_response(example.response).pattern for example in examples} == {"readable"}


def graded(case: str, prompt: Prompt, number: int) -> str:
    """Three right samples, and what the server is to say of the second; one that is wrong."""
    said = ("case:best", f"case:{case}", "case:good", "case:best")[number]
    return f"<think> first add {number} . </think> {said} \\boxed{{ {'99999' if number == 3 else prompt.answer} }}"


def graded_config(folder: Path, port: int) -> Config:
    """40 prompts in two parts."""
    return tiny_config(
        save_model(folder / "model"),
        data__num_train=40,
        rollout__rows=16,
        rejection__prompts=40,
        rejection__general_share=0.0,
        rejection__min_language=0.0,
        rejection__min_grade=0.9,
        judge__endpoint=f"http://127.0.0.1:{port}/v1",
        judge__model="judge-1",
        judge__prompt_price=1.0,
        judge__retries=0,
    )


def test_the_judge_keeps_what_it_grades_well(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it was asked counts once, also what was asked before an interruption."""
    config = graded_config(tmp_path, port)
    asked = 0

    def dying(prompt: Prompt, number: int) -> str:
        nonlocal asked
        asked += 1
        if asked > 36 * 4:  # in the second part
            raise KeyboardInterrupt
        return graded("long", prompt, number)

    monkeypatch.setattr(rejection, "make_engine", ScriptedEngine(dying))
    with open_context(config, tmp_path / "run") as context:
        save_model(context.directory("rl_1") / "checkpoint")
        with pytest.raises(KeyboardInterrupt):
            run_rejection(context, "rejection")
    monkeypatch.setattr(rejection, "make_engine", ScriptedEngine(lambda prompt, n: graded("silent", prompt, n)))
    with open_context(config, tmp_path / "run") as context:
        context.truncate("rejection", 0)
        result = run_rejection(context, "rejection")
    found = {name.removeprefix("yield/"): count for name, count in result.items() if name.startswith("yield/")}
    assert found == {"kept": 40, "judged low": 40 + 32, "without a grade": 8, "wrong": 40}
    assert (result["judge/questions_count"], result["judge/failed_count"], result["judge/cut_off_count"]) == (
        120,
        0,
        32,
    )
    assert result["judge/cost_count"] == pytest.approx(120 * 100 * 1e-6)
    assert "32 of 96 replies were cut off at judge.max_tokens = 1024" in capsys.readouterr().out


def test_a_judge_that_does_not_reply_stops_the_stage(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its samples would be lost, and a later launch would not sample them again."""
    config = graded_config(tmp_path, port)
    monkeypatch.setattr(rejection, "make_engine", ScriptedEngine(lambda prompt, n: graded("forbidden", prompt, n)))
    with open_context(config, tmp_path / "run") as context:
        save_model(context.directory("rl_1") / "checkpoint")
        with pytest.raises(RuntimeError, match=r"32 of 96 questions to judge\.endpoint had no reply .*HTTP 401"):
            run_rejection(context, "rejection")
    again = ScriptedEngine(lambda prompt, n: graded("best", prompt, n))
    monkeypatch.setattr(rejection, "make_engine", again)
    with open_context(config, tmp_path / "run") as context:
        assert run_rejection(context, "rejection")["yield/kept"] == 80
    assert [len(ids) for ids, _, _ in again.calls] == [32, 8]


def test_enough_of_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"rejection__prompts": 3, "rejection__max_per_prompt": 1, "rejection__general_share": 0.0}
    config = tiny_config(save_model(tmp_path / "model"), **options)
    monkeypatch.setattr(rejection, "make_engine", ScriptedEngine(script))
    with open_context(config, tmp_path / "run") as context:
        save_model(context.directory("rl_1") / "checkpoint")
        result = run_rejection(context, "rejection")
    assert (result["examples"], result["yield/enough of this prompt"]) == (3, 3)
