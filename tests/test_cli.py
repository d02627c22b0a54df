"""The `r1fast` command."""

from __future__ import annotations

from importlib import import_module

import pytest

from r1fast import cli, train


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What `train` was called with, instead of training."""
    calls: list[list[str]] = []

    def main(arguments: list[str]) -> int:
        calls.append(arguments)
        return 7

    monkeypatch.setattr(train, "main", main)
    return calls


def test_train_and_plan_pass_their_options_on(trained: list[list[str]]) -> None:
    assert cli.main(["train", "--recipe", "smoke"]) == 7
    assert cli.main(["plan", "--recipe", "smoke"]) == 7
    assert trained == [["--recipe", "smoke"], ["--recipe", "smoke", "--dry-run"]]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_usage(words: list[str], trained: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 0
    assert "usage: r1fast COMMAND" in capsys.readouterr().out
    assert not trained


def test_an_unknown_command_is_2_and_the_known_ones_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    errors = capsys.readouterr().err
    assert (
        errors
        == "r1fast: unknown command 'trian': did you mean train? the commands are " + ", ".join(cli.COMMANDS) + "\n"
    )


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_code_and_is_in_the_usage(name: str) -> None:
    module, summary = cli.COMMANDS[name]
    assert callable(import_module(module).main)
    assert f"  {name:<8} {summary}\n" in cli.USAGE


def test_a_bad_option_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--rl.stepz", "3"]) == 2
    assert "rl.steps" in capsys.readouterr().err
