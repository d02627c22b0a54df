"""How a check is shown."""

from __future__ import annotations

import io

import pytest

from r1fast.doctor.line import Line, show

LINES = [
    Line(status="ok", name="torch", value="2.13.0"),
    Line(status="-", name="apex", value="not installed", fix="git clone ..."),
    Line(status="warn", name="length", value="cut off"),
]


def test_a_line_each_outside_a_terminal() -> None:
    stream = io.StringIO()
    assert show(LINES, stream)
    assert stream.getvalue().splitlines() == [
        "ok    torch            2.13.0",
        "-     apex             not installed",
        "                       -> git clone ...",
        "warn  length           cut off",
    ]


def test_a_fail_is_reported_and_the_rest_is_still_shown() -> None:
    stream = io.StringIO()
    assert not show([Line(status="fail", name="disk", value="full"), *LINES], stream)
    assert len(stream.getvalue().splitlines()) == 5


def test_a_terminal_gets_colours_and_wrapped_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    show([Line(status="fail", name="disk", value="word " * 20, fix="free some space " * 5)], stream)
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("\x1b[31mfail \x1b[0m disk")
    assert all(len(line.replace("\x1b[31m", "").replace("\x1b[0m", "")) <= 60 for line in lines)
    assert all(line.startswith(" " * 23) for line in lines[1:])
