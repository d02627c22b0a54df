"""The command line of the doctor: what it asks for, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1fast import cli
from r1fast.doctor import command
from r1fast.doctor.line import Line

RUNS = Path(__file__).parent / "data" / "runs"


def call(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(["doctor", *words])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_without_words_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = call(capsys)
    assert code == 0
    assert "ok    torch " in output and "apex" in output and "recipe" not in output


def test_a_missing_library_is_1_and_no_recipe_is_tried(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [Line(status="fail", name="torch", value="not installed", fix="pip install torch")]
    monkeypatch.setattr(command, "installed", lambda: iter(lines))
    assert call(capsys)[0] == 1
    code, output, errors = call(capsys, "--recipe", "smoke")
    assert code == 1 and "recipe smoke" not in output
    assert errors == "r1fast: install what is missing first, then the recipe can be checked\n"


def test_a_recipe_with_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "installed", lambda: iter(()))
    words = ["--recipe", "smoke", "--pipeline.stages", "base,r1_zero", "--run.dir", str(tmp_path / "run")]
    code, output, _ = call(capsys, *words)
    assert code == 0
    assert f"ok    run directory    {tmp_path}/run: a new run" in output and "pass rate" in output
    code, output, _ = call(capsys, *words, "--rl.max_tokens", "250")
    assert code == 1
    assert "fail  input            stages.r1_zero.max_tokens = 250: prompt" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--recipe", "tinny"], "recipe 'tinny' does not exist"),
        (["--rl.stepz", "3"], "unknown key rl.stepz"),
        (["nowhere"], "nowhere is no run: it has no config.toml"),
        (["tiny"], "tiny is a recipe: r1fast doctor --recipe tiny"),
        (["one", "two"], "doctor takes one run, not 2 words"),
    ],
)
def test_bad_words_are_2(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "installed", lambda: iter(()))
    code, output, errors = call(capsys, *words)
    assert code == 2 and output == ""
    assert errors.startswith(f"r1fast: {message}")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = call(capsys, "--help")
    assert code == 0 and output == command.USAGE


def test_a_run_that_went_wrong_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, output, _ = call(capsys, str(RUNS / "lr_too_low"))
    assert code == 1
    assert "fail  r1_zero          the reward did not rise" in output
