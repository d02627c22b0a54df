"""Wall clocks jump (NTP, daylight saving, a suspended machine): people read them, and nothing is decided by them."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from test_imports import ROOT, SOURCES
from test_replay import config_of, run
from tiny_run import save_model

# Where wall-clock time is shown to people, or compared with a file's, which has no other.
SHOWN = {"doctor/run.py", "failure.py", "report/page.py", "watchdog.py"}
WALL_CLOCKS = {"time.time", "time.time_ns", "time.localtime", "time.strftime", "time.ctime", "datetime.now"}
WALL_CLOCKS |= {"datetime.datetime.now", "datetime.utcnow", "time.gmtime"}


def test_wall_clocks_are_read_for_people_alone() -> None:
    found = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL_CLOCKS:
                found.add(str(path.relative_to(ROOT / "r1fast")))
            if isinstance(node, ast.ImportFrom) and node.module == "time":
                assert not {alias.name for alias in node.names} & {"time", "time_ns"}, path
    assert found == SHOWN


def test_a_wall_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(save_model(tmp_path / "model"))
    expected = run(config, tmp_path / "steady")
    real, jumps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-1) ** next(jumps) * 86400.0 * 365)
    assert abs(time.time() - time.time()) > 86400.0 * 700
    assert run(config, tmp_path / "jumping") == expected
