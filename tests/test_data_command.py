"""`r1fast data`: what it prints, its report, and the rows that it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_files import plus_one, write_jsonl

from r1fast.data.command import main

LONG = "in a small town by the sea ten fishers catch nine fish each how many fish do they catch together in a week"
MAPPED = ["--fields", '{"prompt": "q", "answer": "a"}']


def rows(*questions: str) -> list[dict[str, str]]:
    return [{"q": question, "a": "1", "more": "kept"} for question in questions]


def test_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [*plus_one(3), {"prompt": "x"}, *plus_one(1)])
    assert main(["check", file]) == 2
    assert f'r1fast data: {file}, line 4: no "answer"' in capsys.readouterr().err
    assert main(["check", file, "--skip", "--report", str(tmp_path / "r.json")]) == 0
    printed = capsys.readouterr().out
    assert "4 prompts, 1 bad rows" in printed and "math, en: 4" in printed and "earlier row has: 1" in printed
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["bad_rows"], report["kinds"], report["repeated"]) == (1, {"math, en": 4}, 1)


def test_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", rows("short", f"Now {LONG}!", "another"))
    other = write_jsonl(tmp_path / "e.jsonl", [{"problem": LONG, "id": "e1"}, {"problem": "a clean one"}])
    out, report = tmp_path / "out.jsonl", tmp_path / "r.json"
    words = [*MAPPED, "--out", str(out), "--report", str(report)]
    assert main(["overlap", file, "--eval", other, *words]) == 0
    printed = capsys.readouterr().out
    assert f"{other}: 1 prompts match 1 of its 2" in printed and f"is in {other} e1" in printed
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows("short", "another")
    found = json.loads(report.read_text())
    assert found["matches"] == 1 and found["places"] == [1] and found["examples"][0]["evaluation_id"] == "e1"


def test_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [LONG, "another", LONG.upper(), LONG.replace("nine", "eight"), "three"]
    file = write_jsonl(tmp_path / "a.jsonl", rows(*questions))
    out, report = tmp_path / "out.jsonl", tmp_path / "r.json"
    words = [*MAPPED, "--out", str(out), "--report", str(report)]
    assert main(["duplicates", file, *words]) == 0
    printed = capsys.readouterr().out
    assert "exact: 1, near (0.8 or more): 1" in printed and "2 pairs" not in printed
    assert [json.loads(line) for line in out.read_text().splitlines()] == rows(LONG, "another", "three")
    assert json.loads(report.read_text())["pairs"] == [{"id": "a-3", "repeats": "a-1"}, {"id": "a-4", "repeats": "a-1"}]
    assert main(["duplicates", file, *MAPPED, "--near", "1"]) == 0
    assert "near (1 or more): 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["check", "none.jsonl"], "none.jsonl: cannot read"),
        (["check", "none.jsonl", "--fields", "{"], "--fields '{' is not JSON"),
        (["check", "none.jsonl", "--fields", "[1]"], "--fields '[1]' is no table"),
        (["check", "none.jsonl", "--fields", '"prompt"'], "--fields '\"prompt\"' is no table"),
        (["check", "none.jsonl", "--fields", '{"prompt": 1}'], "data.fields.prompt = 1 must be a text"),
        (["check", "none.jsonl", "--preset", "gsm"], "data.preset = 'gsm' must be one of"),
        (["duplicates", "none.jsonl", "--near", "0"], "cannot read"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("place", ["/proc/nope/x", "{tmp}"])
def test_a_report_that_cannot_be_written_is_said(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = place.format(tmp=tmp_path)
    file = write_jsonl(tmp_path / "a.jsonl", plus_one(3))
    assert main(["check", file, "--report", report]) == 2
    error = capsys.readouterr().err
    assert error.startswith("r1fast data: [Errno") and error.count("\n") == 1
