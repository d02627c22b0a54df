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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_terminal(line: Line) -> list[str]:
    """Rows of a check on a terminal of 60 columns."""
    stream = Terminal()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("COLUMNS", "60")
        show([line], stream)
    return stream.getvalue().splitlines()


def test_a_terminal_gets_colours_and_wrapped_lines() -> None:
    lines = on_terminal(Line(status="fail", name="disk", value="word " * 20, fix="free some space " * 5))
    assert lines[0].startswith("\x1b[31mfail \x1b[0m disk")
    assert all(len(line.replace("\x1b[31m", "").replace("\x1b[0m", "")) <= 60 for line in lines)
    assert all(line.startswith(" " * 23) for line in lines[1:])


def test_a_command_is_never_wrapped() -> None:
    """It is copied into a shell, where a new line would end it."""
    command = "pip install -v --no-build-isolation --with-something-long ."
    indent = " " * 23
    (_, row) = on_terminal(Line(status="-", name="apex", value="none", fix=command))
    assert row == f"{indent}-> {command}"
    _, *rows = on_terminal(
        Line(status="fail", name="run", value="died", fix=f"repair what was said above, then: {command}")
    )
    assert rows == [f"{indent}-> repair what was said above, then:", command]
    (_, row) = on_terminal(Line(status="-", name="vllm", value="none", fix="pip install vllm"))
    assert row == f"{indent}-> pip install vllm"


def test_names_are_not_broken_at_their_hyphens() -> None:
    rows = on_terminal(Line(status="ok", name="disk", value="about 12345678901234567890 bytes --no-build-isolation"))
    assert rows[1] == " " * 23 + "--no-build-isolation"
