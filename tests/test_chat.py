"""`r1fast chat` on a real small run: names, templates, options, thinking apart from the answer."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from r1fast import cli, train
from r1fast.chat import main

QUESTION = "tom has 3 apples . gains 4 . how many apples ?"
RUN = [
    *("--recipe", "smoke", "--pipeline.stages", "base,r1_zero,cold_start,sft_1", "--run.tensorboard", "false"),
    *("--data.num_train", "64", "--data.num_dev", "8", "--rl.dev_problems", "4", "--rl.prompts_per_step", "2"),
    *("--stages.sft_1.steps", "24", "--stages.sft_1.lr", "1e-3"),  # enough to learn the form, not to be right
]
Ask = Callable[..., str]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, up to SFT 1."""
    path = tmp_path_factory.mktemp("runs") / "smoke"
    assert train.main([*RUN, "--run", str(path)]) == 0
    return path


@pytest.fixture
def ask(run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    def run(*words: str, questions: str = f"{QUESTION}\n", code: int = 0, run: Path = run_dir) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(questions))
        assert main([str(run), *words]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    return run


def test_thinking_and_answer_apart(ask: Ask) -> None:
    lines = ask("--model", "sft_1", "--temperature", "0").splitlines()
    assert lines[0] == f"you: {QUESTION}"
    assert [line.split(":")[0] for line in lines[1:]] == ["thinking", "answer"]
    assert "<" not in lines[1] and "boxed" in lines[2]


def test_a_model_by_row_or_by_default_is_the_last_finished(ask: Ask) -> None:
    assert ask() == ask("--model", "sft_1")


def test_each_model_gets_the_template_of_its_stage(ask: Ask, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    from r1fast.conversation import Conversation

    written = Conversation._written

    def spy(self: Conversation, messages: list[dict[str, str]]) -> tuple[tuple[int, ...], str, int]:
        token_ids, prefix, room = written(self, messages)
        seen.append(str(self.policy.tokenizer.decode(token_ids)))
        return token_ids, prefix, room

    monkeypatch.setattr(Conversation, "_written", spy)
    for name in ("base", "r1_zero", "sft_1"):
        ask("--model", name)
    assert ["<instruction>" in text for text in seen] == [True, True, False]


def test_the_seed_decides(ask: Ask) -> None:
    words = ["--model", "base", "--temperature", "1.5", "--top_p", "1"]
    answers = {seed: ask(*words, "--seed", seed) for seed in ("0", "1", "2")}
    assert answers["0"] == ask(*words, "--seed", "0")
    assert len(set(answers.values())) > 1


def test_streamed_or_at_once_it_is_the_same_text(ask: Ask) -> None:
    assert ask("--at_once") == ask()


def test_a_cut_off_answer_says_so(ask: Ask) -> None:
    assert ask("--max_tokens", "3").endswith("(cut off: it reached --max_tokens 3 or the end of its window)\n")


def test_several_questions_blank_lines_and_commands(ask: Ask) -> None:
    shown = ask(questions=f"\n{QUESTION}\n\n/new\nhello\n/quit\nhello again\n")
    asked = [line for line in shown.splitlines() if line.startswith("you:")]
    assert asked == [f"you: {QUESTION}", "you: /new", "you: hello", "you: /quit"]
    assert "you: /new\na new conversation\nyou: hello\n" in shown and shown.endswith("you: /quit\n")


def test_the_last_line_needs_no_newline(ask: Ask) -> None:
    assert ask(questions=QUESTION).startswith(f"you: {QUESTION}\n")


def test_words_that_the_model_does_not_know(ask: Ask) -> None:
    assert "not among this model's words: aubergines" in ask(questions="tom has 3 aubergines .\n")


def test_a_question_that_is_too_long_does_not_end_the_chat(ask: Ask) -> None:
    shown = ask("--model", "base", questions=f"{'tom ' * 300}\n{QUESTION}\n")
    assert "the model's window is 256: ask a shorter one" in shown
    assert shown.rstrip().splitlines()[-1].startswith("answer: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "r1_zer0"], "model 'r1_zer0' is not in this run: did you mean r1_zero"),
        (["--model", "r1"], "model 'r1' is not in this run"),
        (["--temperature", "-1"], "--temperature -1.0 must be at least 0"),
        (["--top_p", "0"], "--top_p 0.0 must be above 0 and at most 1"),
        (["--max_tokens", "0"], "--max_tokens 0 must be at least 1"),
        (["--seed", "-1"], "--seed -1 must be at least 0"),
    ],
)
def test_bad_options_are_2(ask: Ask, words: list[str], message: str) -> None:
    errors = ask(*words, code=2)
    assert errors.startswith(f"r1fast: {message}") and errors.count("\n") == 1


def test_an_unfinished_stage_and_a_damaged_checkpoint(ask: Ask, run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "copy")
    (copy / "stages" / "03-sft_1" / "result.json").unlink()
    assert "stage sft_1 is not finished, so it has no checkpoint yet; finished are base, r1_zero" in ask(
        "--model", "sft_1", code=2, run=copy
    )
    (copy / "stages" / "01-r1_zero" / "checkpoint" / "model.safetensors").write_bytes(b"")
    assert "is truncated or no safetensors file" in ask("--model", "r1_zero", code=2, run=copy)


def test_a_directory_that_is_no_run(ask: Ask, tmp_path: Path) -> None:
    assert "is no run: it has no config.toml" in ask(code=2, run=tmp_path / "nothing")


def test_chat_leaves_the_run_as_it_is(ask: Ask, run_dir: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    ask()
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before


def test_in_a_terminal_thinking_is_dim(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    lines = iter([QUESTION])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert cli.main(["chat", str(run_dir), "--model", "sft_1", "--temperature", "0"]) == 0
    shown = capsys.readouterr().out
    assert "sft_1" in shown and "ask like this: " in shown and "/quit or Ctrl-D ends" in shown
    assert "\x1b[2;3mthinking: " in shown and "\x1b[1manswer: " in shown
