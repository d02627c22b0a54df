"""`r1fast rewards check`: tables, failures and exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from r1fast.rewards.command import main

GOLD = "\\frac{\\sqrt{3}}{2}"
ROWS = [
    {"prompt": "one", "answer": "14"},
    {"prompt": "two", "answer": GOLD},
    {"prompt": "three", "answer": 1.5},
]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answered(answer: str) -> str:
    return f"<think> so </think> <answer> {answer} </answer>"


def table(text: str, part: int = 0) -> dict[str, dict[str, str]]:
    """The rows of the table number `part` by reward: column -> cell."""
    lines = text.splitlines()
    head = [number for number, line in enumerate(lines) if line.startswith("reward ")][part]
    columns = lines[head].split()[1:]
    rows = {}
    for line in lines[head + 1 :]:
        name, *cells = line.split()
        if len(cells) != len(columns) or ":" in name:
            break
        rows[name] = dict(zip(columns, cells, strict=True))
    return rows


def test_good_data_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "data.jsonl", ROWS)
    assert main(["check", str(data)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"3 gold answers of {data}, ")
    rows = table(shown)
    assert rows["accuracy"] == {"scores": "6", "mean": "1.000", "ok": "6"} | dict.fromkeys(
        ("wrong", "partial", "unparsed", "empty", "timeout", "crash"), "-"
    )
    assert rows["verifier"]["scores"] == rows["verifier"]["ok"] == "1"  # plain numbers need none
    assert shown.endswith("ok: 0 of 3 do not score 1 (allowed 0.0%)\n")


def test_bad_golds_are_listed_and_fail_above_a_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "data.jsonl", [*ROWS, {"prompt": "four", "answer": "\\frac{"}])
    assert main(["check", str(data)]) == 1
    shown = capsys.readouterr().out
    assert table(shown)["accuracy"]["unparsed"] == "1"
    assert r"  data-4  accuracy: unparsed  answer '\\frac{'" in shown.splitlines()
    assert shown.endswith("FAIL: 1 of 4 do not score 1 (allowed 0.0%)\n")
    assert main(["check", str(data), "--max-bad", "0.25"]) == 0
    assert main(["check", str(data), "--max-bad", "0.24", "--show", "0"]) == 1
    assert "  and 1 more (--show N)" in capsys.readouterr().out


@pytest.mark.parametrize("names", ["format", "format,language", "accuracy_any", "accuracy_in_format"])
def test_bad_golds_fail_whatever_rewards_are_asked_for(
    names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data.jsonl", [*ROWS, {"prompt": "four", "answer": "no \\frac{"}])
    assert main(["check", str(data), "--rewards", names]) == 1
    shown = capsys.readouterr().out
    judge = names if names == "accuracy_in_format" else "accuracy"
    assert list(table(shown)) == [judge, "verifier"]
    assert shown.endswith("FAIL: 1 of 4 do not score 1 (allowed 0.0%)\n")


def test_a_gold_that_its_verifier_rejects_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same text scores 1 unread, so that only asking the verifier itself shows that no other text ever will."""
    entry = json.dumps(reasoning_gym.create_dataset("countdown", size=1, seed=0)[0])
    metadata = {"gym_dataset": "countdown", "gym_config": "{}", "gym_entry": entry}
    rows = [{"prompt": "q", "answer": "no such sum", "kind": "gym", "metadata": metadata}]
    assert main(["check", str(write_rows(tmp_path / "data.jsonl", rows))]) == 1
    shown = capsys.readouterr().out
    assert table(shown)["accuracy"]["ok"] == "2"
    assert table(shown)["verifier"]["wrong"] == "1" and "so that only the same text scores 1" in shown


def test_samples_are_scored_and_compared_with_what_was_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "data.jsonl", ROWS)
    rows = [
        {"id": "data-1", "prompt": "one", "response": answered("14"), "parts": {"accuracy": 1.0, "helpful": 0.3}},
        {"id": "data-1", "response": answered("15"), "parts": {"accuracy": 1.0, "format": 1.0}},
        {"prompt": "two", "response": answered("\\sqrt{3}/2")},
        {"prompt": "two", "response": "no idea"},
        {"id": "general-7", "response": "hello"},
    ]
    samples = write_rows(tmp_path / "samples.jsonl", rows)
    assert main(["check", str(data), "--samples", str(samples)]) == 0
    shown = capsys.readouterr().out
    found = table(shown, 1)
    assert f"4 samples of {samples} (1 of other prompts left out)" in shown
    assert (found["accuracy"]["ok"], found["accuracy"]["wrong"], found["accuracy"]["unparsed"]) == ("2", "1", "1")
    assert (found["format"]["mean"], found["format"]["ok"], found["format"]["wrong"]) == ("0.750", "3", "1")
    assert "2 of 3 scores that the file has came out the same" in shown
    assert f"  data-1  accuracy: wrong 0, was 1  response {answered('15')!r}" in shown.splitlines()
    assert main(["check", str(data), "--samples", str(samples), "--rewards", "format"]) == 0
    assert list(table(capsys.readouterr().out, 1)) == ["format"]


def test_a_prefix_that_the_template_writes_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "data.jsonl", ROWS)
    samples = write_rows(tmp_path / "s.jsonl", [{"id": "data-1", "response": " so </think> <answer> 14 </answer>"}])
    for options, share in (([], "0.000"), (["--response-prefix", "<think>"], "1.000")):
        assert main(["check", str(data), "--samples", str(samples), *options]) == 0
        assert table(capsys.readouterr().out, 1)["format"]["mean"] == share


def test_verifier_failures_above_a_share_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "data.jsonl", ROWS)
    rows = [{"id": "data-2", "response": answered("9^{9^{9^{9}}}")}, {"id": "data-2", "response": answered("2")}]
    samples = write_rows(tmp_path / "samples.jsonl", rows)
    words = ["check", str(data), "--samples", str(samples), "--rewards", "accuracy", "--timeout-s", "1"]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert table(shown, 1)["accuracy"]["timeout"] == "1"
    assert shown.endswith("FAIL: 1 of 2 scores failed in the verifier (allowed 10.0%)\n")
    assert main([*words, "--max-errors", "0.5"]) == 0


def test_bad_input_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(tmp_path / "data.jsonl", ROWS)
    assert main(["check", str(tmp_path / "none.jsonl")]) == 2
    assert main(["check", str(data), "--samples", str(tmp_path / "none.jsonl")]) == 2
    assert main(["check", str(data), "--rewards", "acuracy"]) == 2
    assert "acuracy: unknown reward" in capsys.readouterr().err
    strangers = write_rows(tmp_path / "strangers.jsonl", [{"id": "other", "response": "x"}])
    assert main(["check", str(data), "--samples", str(strangers)]) == 2
    assert "none of its 1 samples answers a prompt of the data" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["chekc"])
