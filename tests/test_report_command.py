"""`r1fast report`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from report_run import write_config

from r1fast import cli


def test_it_writes_the_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(tmp_path / "a", "base")
    write_config(tmp_path / "b", "base")
    assert cli.main(["report", str(tmp_path / "a")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a' / 'report.html'} (0.1 MB)\n"
    assert cli.main(["report", str(tmp_path / "a"), "--compare", str(tmp_path / "b")]) == 0
    assert cli.main(["report", str(tmp_path / "a"), "--out", str(tmp_path / "here.html")]) == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"config.toml", "report.html", "compare-b.html"}
    assert (tmp_path / "here.html").exists()


def test_bad_input_is_2_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(tmp_path / "a", "base")
    assert cli.main(["report", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "a"), "--compare", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    (tmp_path / "a" / "metrics.jsonl").write_text("{no json\n", encoding="utf-8")
    assert cli.main(["report", str(tmp_path / "a")]) == 2
    assert "line 1 is not JSON" in capsys.readouterr().err
    assert not (tmp_path / "a" / "report.html").exists()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["report"])
    assert stopped.value.code == 2


def test_a_directory_that_cannot_be_written_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_config(tmp_path / "a", "base")
    target = tmp_path / "a" / "config.toml" / "page.html"  # within a file
    assert cli.main(["report", str(tmp_path / "a"), "--out", str(target)]) == 2
    assert os.fspath(target.parent) in capsys.readouterr().err
